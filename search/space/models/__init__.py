"""The models of a space: what each is called, and mistakes in what names them."""
