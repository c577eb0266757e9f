"""One process of two that train together: `train_in_two.py FOLDER RANK`."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from test_training import LIBRARY, SHORT, tiny_run

from fasttracks.training.loop import train
from fasttracks.training.sources import scenes

torch.set_num_threads(1)
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=2)
run = tiny_run(SHORT)
train(run, scenes(LIBRARY, seed=3), folder, validation={}, report_every=2)
torch.save(run.network.state_dict(), folder / f"{rank}.pt")
dist.destroy_process_group()
