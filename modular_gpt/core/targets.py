"""Convention for targets, shared by loss, data and evaluation."""

IGNORED = -100  # target excluded from the loss; also the default of torch's cross_entropy
