"""One thread: two threads on a shared processor wait for each other longer than they work."""

import torch

torch.set_num_threads(1)
