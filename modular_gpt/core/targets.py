"""The convention of targets that the loss, the data and the evaluation share."""

IGNORED = -100  # a target that does not count; also the default of torch's cross_entropy
