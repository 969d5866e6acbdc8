"""Inputs and labels: sources, preprocessing declared once, and the three roles. Floats out, no torch inside."""

from smidgen.data.batches import as_dataset
from smidgen.data.dataset import Dataset, check_inputs, check_labels
from smidgen.data.preprocess import Preprocess
from smidgen.data.roles import Roles, split_roles
from smidgen.data.sources import open_data

__all__ = ["Dataset", "Preprocess", "Roles", "as_dataset", "check_inputs", "check_labels", "open_data", "split_roles"]
