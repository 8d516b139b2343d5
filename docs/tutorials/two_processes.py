"""The gradient of one batch, its replicas shared out over the processes that torchrun starts."""

import os

import snntorch as snn
import torch
import torch.distributed as dist
from torch import nn

from nit_snn import NITLearner, swap_neurons

dist.init_process_group("gloo")
torch.manual_seed(0)  # the same network and the same batch in all processes
net = nn.Sequential(nn.Linear(20, 10), snn.Leaky(beta=0.5, init_hidden=True), nn.Linear(10, 3))
learner = NITLearner(swap_neurons(net), credit="none", replicas=16, shard="replicas", seed=0)
x, y = torch.rand(32, 20), torch.randint(3, (32,))
with learner.record():
    xr, yr = learner.expand(x, y)  # this process's part of the replicas
    logits = net(xr) + net(xr)  # two time steps
    losses = nn.functional.cross_entropy(logits, yr, reduction="none")
loss = learner.backward(losses)  # the mean over all processes
if dist.get_rank() == 0:
    size, rows = dist.get_world_size(), len(xr)
    norm = net[0].weight.grad.norm()
    print(f"{size} processes, {rows} rows each: loss {loss:.6f}, gradient norm {norm:.6f}")
    torch.save(net[0].weight.grad, os.environ["GRADIENT"])
dist.destroy_process_group()
