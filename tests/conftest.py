import os

import torch

import tests.environments  # noqa: F401  registers the probes

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
