"""Comparison of variants with equal budgets: trials, learning rates, paired statistics, and a report."""

from modular_gpt.comparison.comparison import Comparison, compare
from modular_gpt.comparison.config import CompareConfig
from modular_gpt.comparison.plan import Plan
from modular_gpt.comparison.results import CompareResult
from modular_gpt.comparison.trial import run_trial

__all__ = ["CompareConfig", "CompareResult", "Comparison", "Plan", "compare", "run_trial"]
