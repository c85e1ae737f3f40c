"""The target `hub`: a folder that loads with `skipsearch.from_pretrained`."""
