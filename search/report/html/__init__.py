"""The report of a study as one HTML page: a module and a template for each section."""
