"""The loss that guides a search before accuracy is measured."""
