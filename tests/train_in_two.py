"""One process of several that train together: `torchrun train_in_two.py FOLDER`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_training import LIBRARY, SHORT, tiny_run

from fasttracks.training.loop import train
from fasttracks.training.sources import scenes

torch.set_num_threads(1)
dist.init_process_group("gloo")
run, folder = tiny_run(SHORT), Path(sys.argv[1])
train(run, scenes(LIBRARY, seed=3), folder, validation={}, report_every=2)
torch.save(run.network.state_dict(), folder / f"{dist.get_rank()}.pt")
dist.destroy_process_group()
