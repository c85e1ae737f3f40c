"""The guide: a graded loss that ranks policies before their accuracy is measured."""
