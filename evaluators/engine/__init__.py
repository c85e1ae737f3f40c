"""How requests run on the model in a search: packed into rows, in batches by tokens, without what is finished."""
