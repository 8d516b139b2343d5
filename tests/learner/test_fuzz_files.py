"""Whatever is in a file or a saved state: it is taken, or refused by an error of this package.

And what was to take it is as it was before.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SnnTorchNet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_checkpoint import equal, parts, states, train
from test_datasets import write_idx

from nit_snn import NITLearner, NITSPlus, swap_neurons
from nit_snn.datasets import load
from nit_snn.datasets.subset import file_name, read_subset
from nit_snn.errors import CheckpointError, DatasetError, NITError
from nit_snn.training.checkpoint import Checkpoint
from nit_snn.training.checkpoint_file import read
from nit_snn.training.checkpoints import Checkpoints

few = settings(
    max_examples=60,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([torch.zeros(2), torch.tensor(math.nan), torch.ones(0, dtype=torch.uint8)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@st.composite
def damage(draw: Any) -> Any:
    """A function that flips bits of some bytes, or cuts them, or puts others in between."""
    at, bits = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(1, 255))
    kind, more = draw(st.sampled_from(["flip", "cut", "insert"])), draw(st.binary(max_size=9))

    def apply(content: bytes) -> bytes:
        place = int(at * len(content))
        if kind == "flip":
            return content[:place] + bytes([content[place] ^ bits]) + content[place + 1 :]
        return content[:place] + (more + content[place:] if kind == "insert" else b"")

    return apply


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, bytes]:
    own = parts()
    train(own, 4)
    path = Checkpoints(tmp_path_factory.mktemp("run")).save({"best": 1.0}, **own)
    return own, path, path.read_bytes()


@few
@given(change=damage())
def test_bytes_of_a_checkpoint(change: Any, trained: Any) -> None:
    _own, path, content = trained
    changed = change(content)
    path.write_bytes(changed)
    if changed == content:
        read(path)
    else:
        with pytest.raises(CheckpointError):
            read(path)


@few
@given(content=st.binary(max_size=300))
def test_any_bytes_are_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read(path)


@few
@given(value=plain, data=st.data())
def test_values_of_a_checkpoint(value: Any, data: st.DataObject, trained: Any) -> None:
    """One value anywhere in it is another, as a stranger could write it."""
    own, path, content = trained
    path.write_bytes(content)
    saved = read(path)
    tree: Any = {"parts": saved.parts, "random": saved.random}
    while True:
        at = data.draw(st.sampled_from(list(tree) if isinstance(tree, dict) else range(len(tree))))
        inner = tree[at]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            break
        tree = inner
    tree[at] = value
    before = states(own)
    try:
        Checkpoint(path, {}, {}, saved.parts, saved.random).restore(**own)
    except CheckpointError:
        assert equal(states(own), before)
    finally:
        path.write_bytes(content)
        read(path).restore(**own)


@st.composite
def one_changed(draw: Any, state: dict[str, Any], value: Any) -> dict[str, Any]:
    """`state` with another value of one entry, at any depth."""
    key = draw(st.sampled_from(sorted(state)))
    if isinstance(state[key], dict) and state[key] and draw(st.integers(0, 3)):
        value = draw(one_changed(state[key], value))
    return {**state, key: value}


@few
@given(data=st.data(), value=plain)
def test_states_of_learner_and_schedule(data: st.DataObject, value: Any) -> None:
    options: Any = data.draw(
        st.sampled_from([{"noise_reuse": True}, {"replicas": "auto"}, {"credit": "none"}, {}])
    )
    net = swap_neurons(SnnTorchNet())
    learner = NITLearner(net, **{"replicas": 4, "seed": 3, **options})
    for _ in range(2):
        with learner.record():
            out = net(learner.expand(torch.ones(2, 4)))
        learner.backward(out.square().sum(1))
    plus = NITSPlus(learner, after=3)
    for owner in (learner, plus):
        before = copy.deepcopy(owner.state_dict())
        state = data.draw(st.just(value) | one_changed(before, value))
        try:
            owner.load_state_dict(state)
        except CheckpointError:
            assert owner.state_dict() == before
        else:
            assert isinstance(state, dict) and owner.state_dict().keys() == before.keys()
            with learner.record():
                out = net(learner.expand(torch.ones(2, 4)))
            learner.backward(out.square().sum(1))


@few
@given(change=damage(), which=st.sampled_from(["images-idx3", "labels-idx1"]))
def test_bytes_of_a_full_set(change: Any, which: str, tmp_path: Path) -> None:
    """A flipped pixel of a set that is not the true one is beyond what can be told."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    images, labels = np.arange(3 * 784).astype(np.uint8).reshape(3, 28, 28), np.arange(3)
    for prefix in ("train", "t10k"):
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images)
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels.astype(np.uint8))
    path = raw / f"t10k-{which}-ubyte"
    content = path.read_bytes()
    path.write_bytes(change(content))
    try:
        found = load("mnist", tmp_path)
    except DatasetError as error:
        assert str(path) in str(error) or str(raw) in str(error)
    else:
        assert len(path.read_bytes()) == len(content)
        assert found[0].shape == (6, 28, 28) and found[1].min() >= 0 and found[1].max() < 10


@few
@given(change=damage())
def test_bytes_of_the_embedded_images(change: Any, tmp_path: Path) -> None:
    import nit_snn.datasets as package

    content = (Path(package.__file__).parent / file_name("mnist")).read_bytes()
    path = tmp_path / file_name("mnist")
    changed = change(content)
    path.write_bytes(changed)
    if changed != content:
        with pytest.raises(DatasetError, match=r"mnist-10k\.npz is damaged.*Install nit-snn again"):
            read_subset(path)


@few
@given(change=damage(), framework=st.sampled_from(["snntorch", "spikingjelly"]))
def test_bytes_of_a_nir_file(change: Any, framework: str, tmp_path: Path) -> None:
    nir = pytest.importorskip("nir")
    from nit_snn.exchange import from_nir

    path = tmp_path / "graph.nir"
    nodes = {
        "input": nir.Input(np.array([4])),
        "fc": nir.Affine(np.ones((3, 4)), np.zeros(3)),
        "lif": nir.LIF(*(np.full(3, v) for v in (2e-4, 1.0, 0.0, 1.0)), v_reset=np.zeros(3)),
        "output": nir.Output(np.array([3])),
    }
    edges = [("input", "fc"), ("fc", "lif"), ("lif", "output")]
    nir.write(path, nir.NIRGraph(nodes, edges))
    path.write_bytes(change(path.read_bytes()))
    try:
        net = from_nir(path, framework)
    except NITError as error:
        assert str(error)
    else:
        assert isinstance(net, torch.nn.Sequential)


@few
@given(data=st.data(), value=plain)
def test_values_of_a_nir_graph(data: st.DataObject, value: Any) -> None:
    nir = pytest.importorskip("nir")
    from nit_snn.exchange import from_nir

    nodes = {
        "input": nir.Input(np.array([4])),
        "fc": nir.Affine(np.ones((3, 4)), np.zeros(3)),
        "lif": nir.IF(*(np.full(3, v) for v in (1.0, 1.0)), v_reset=np.zeros(3)),
        "output": nir.Output(np.array([3])),
    }
    edges = [("input", "fc"), ("fc", "lif"), ("lif", "output")]
    graph = nir.NIRGraph(nodes, edges)
    name = data.draw(st.sampled_from(["fc", "lif"]))
    setattr(graph.nodes[name], data.draw(st.sampled_from(sorted(vars(graph.nodes[name])))), value)
    try:
        net = from_nir(graph, "snntorch")
    except NITError as error:
        assert str(error)
    else:
        assert isinstance(net, torch.nn.Sequential)


def test_names_and_edges_of_a_nir_graph() -> None:
    nir = pytest.importorskip("nir")
    from nit_snn.exchange import from_nir

    def graph(name: str, edges: list[tuple[str, str]]) -> Any:
        ends = {"in": nir.Input(np.array([4])), "out": nir.Output(np.array([3]))}
        found = nir.NIRGraph(
            {**ends, name: nir.Linear(np.ones((3, 4)))}, [("in", name), (name, "out")]
        )
        found.edges = edges
        return found

    from_nir(graph("fc", [("in", "fc"), ("fc", "out")]), "snntorch")
    for name, edges in (
        ("forward", [("in", "forward"), ("forward", "out")]),
        ("fc", [("in", "fc"), ("fc", "nowhere")]),
        ("fc", [("nowhere", "fc"), ("in", "fc"), ("fc", "out")]),
    ):
        with pytest.raises(NITError):
            from_nir(graph(name, edges), "snntorch")
