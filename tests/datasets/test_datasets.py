"""The embedded subsets, the full sets, the split, and the script that made the subsets."""

import importlib.util
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from nit_snn.datasets import NAMES, load, load_full, load_subset, split
from nit_snn.datasets.codec import decode, encode
from nit_snn.datasets.subset import file_name

FakeFull = tuple[Path, dict[str, tuple[torch.Tensor, torch.Tensor]]]

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
FILE_LIMIT = 3_500_000

# Read once: the tests below change the variable.
FULL_DIR = os.environ.get("NIT_SNN_DATA")
needs_full = pytest.mark.skipif(not FULL_DIR, reason="NIT_SNN_DATA names no full datasets")
each_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts without the variable, whatever the environment holds."""
    monkeypatch.delenv("NIT_SNN_DATA", raising=False)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write bytes in the format of the MNIST files."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def fake_images(count: int, seed: int) -> np.ndarray:
    """Make random images with zeros and extremes among their values, shape (count, 28, 28)."""
    rng = np.random.RandomState(seed)
    images = rng.randint(0, 256, (count, 28, 28)).astype(np.uint8)
    images[rng.rand(*images.shape) < 0.5] = 0
    images[rng.rand(*images.shape) < 0.1] = 255
    return images


@pytest.fixture
def fake_full(tmp_path: Path) -> FakeFull:
    """Lay out a tiny full set of each name: 30 training and 20 test images."""
    expected = {}
    for number, name in enumerate(NAMES):
        raw = tmp_path / FOLDERS[name] / "raw"
        raw.mkdir(parents=True)
        images = fake_images(50, number)
        labels = ((np.arange(50) + number) % 10).astype(np.uint8)
        for prefix, part in (("train", slice(0, 30)), ("t10k", slice(30, 50))):
            write_idx(raw / f"{prefix}-images-idx3-ubyte", images[part])
            write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels[part])
        expected[name] = torch.from_numpy(images), torch.from_numpy(labels).long()
    return tmp_path, expected


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Import the script, which is not part of the package."""
    spec = importlib.util.spec_from_file_location(
        "make_datasets", ROOT / "scripts" / "make_datasets.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The embedded subsets


@each_name
def test_subset_shapes_types_and_balance(name: str) -> None:
    images, labels = load(name)
    assert images.shape == (10_000, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.shape == (10_000,)
    assert labels.dtype == torch.int64
    assert labels.bincount().tolist() == [1000] * 10
    assert images.max() == 255
    assert (images.flatten(1).max(1).values > 0).all()


@each_name
def test_subset_of_numpy_is_the_same(name: str) -> None:
    images, labels = load_subset(name)
    assert images.dtype == labels.dtype == np.uint8
    assert torch.equal(torch.from_numpy(images), load(name)[0])
    assert torch.equal(torch.from_numpy(labels).long(), load(name)[1])


@each_name
def test_subset_mixes_the_classes(name: str) -> None:
    assert len(load(name)[1][:100].unique()) == 10


@each_name
def test_subset_repeats_no_image(name: str) -> None:
    images, _ = load_subset(name)
    assert len({image.tobytes() for image in images}) == 10_000


@each_name
def test_subset_file_is_small_and_has_a_licence(name: str) -> None:
    folder = ROOT / "nit_snn" / "datasets"
    assert (folder / file_name(name)).stat().st_size < FILE_LIMIT
    assert file_name(name) in (folder / f"LICENSE-{name}.md").read_text(encoding="utf-8")


def test_empty_variable_stands_for_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIT_SNN_DATA", "")
    assert len(load("mnist")[0]) == 10_000


def test_subset_needs_no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    assert len(load("mnist")[0]) == 10_000


# The encoding


@pytest.mark.parametrize("shape", [(3, 28, 28), (2, 5, 8), (4, 1, 1), (0, 28, 28)])
def test_encoding_loses_nothing(shape: tuple[int, int, int]) -> None:
    images = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    images[images < 100] = 0
    again = decode(*encode(images), width=shape[2])
    assert again.dtype == np.uint8
    np.testing.assert_array_equal(again, images)


def test_decode_refuses_parts_that_do_not_fit() -> None:
    mask, residuals = encode(fake_images(2, 0))
    with pytest.raises(ValueError, match="residuals"):
        decode(mask, residuals[:-1], 28)


# The full sets, on a tiny imitation


@each_name
def test_full_is_training_then_test(name: str, fake_full: FakeFull) -> None:
    folder, expected = fake_full
    images, labels = load(name, folder)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert torch.equal(images, expected[name][0])
    assert torch.equal(labels, expected[name][1])


@each_name
def test_variable_names_the_folder(
    name: str, fake_full: FakeFull, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = fake_full
    monkeypatch.setenv("NIT_SNN_DATA", str(folder))
    assert torch.equal(load(name)[0], expected[name][0])


def test_argument_goes_before_the_variable(
    fake_full: FakeFull, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = fake_full
    monkeypatch.setenv("NIT_SNN_DATA", str(tmp_path / "elsewhere"))
    assert torch.equal(load("mnist", str(folder))[0], expected["mnist"][0])


def test_download_keeps_files_that_are_there(
    fake_full: FakeFull, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = fake_full
    monkeypatch.setattr("urllib.request.urlopen", None)
    assert torch.equal(load("mnist", folder, download=True)[0], expected["mnist"][0])


def test_download_without_a_folder_goes_to_data(
    fake_full: FakeFull, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = fake_full
    monkeypatch.setattr("urllib.request.urlopen", None)
    (folder / "work").mkdir()
    for part in FOLDERS.values():
        (folder / "work" / "data").mkdir(exist_ok=True)
        (folder / part).rename(folder / "work" / "data" / part)
    monkeypatch.chdir(folder / "work")
    assert torch.equal(load("mnist", download=True)[0], expected["mnist"][0])


@each_name
def test_missing_files_name_the_folder_and_the_way_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    assert str(tmp_path / FOLDERS[name] / "raw") in message
    assert "--download" in message
    assert "NIT_SNN_DATA" in message


def test_one_missing_file_is_named(fake_full: FakeFull) -> None:
    folder, _ = fake_full
    (folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="no t10k-labels-idx1-ubyte in"):
        load("mnist", folder)


def test_missing_torchvision_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "nit-snn\[train\]"'):
        load("mnist", tmp_path)


@pytest.mark.parametrize("call", [load, load_subset, lambda name: load_full(name, "nowhere")])
def test_unknown_name_lists_the_names(call: Callable[[str], object]) -> None:
    with pytest.raises(ValueError, match=r"'cifar'.*mnist, fashion-mnist"):
        call("cifar")


# The split


def numbered(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make images that can be told apart by their label, their number."""
    images = torch.arange(count * 4).remainder(256).to(torch.uint8).reshape(count, 2, 2)
    return images, torch.arange(count)


def test_split_shapes_types_and_range() -> None:
    splits = split(*load("mnist"))
    assert [len(part) for part in splits] == [7_000, 2_000, 1_000]
    for part in splits:
        images, labels = part.tensors
        assert images.shape == (len(part), 1, 28, 28)
        assert images.dtype == torch.float32
        assert images.min() == 0
        assert images.max() == 1
        assert labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(70_000, [49_000, 14_000, 7_000]), (10, [7, 2, 1]), (19, [13, 3, 3]), (5, [3, 1, 1])],
)
def test_split_sizes(count: int, sizes: list[int]) -> None:
    assert [len(part) for part in split(*numbered(count))] == sizes


def test_split_is_disjoint_and_exhaustive() -> None:
    parts = [part.tensors[1] for part in split(*numbered(1003), seed=5)]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1003))


def test_split_keeps_images_with_their_labels() -> None:
    images, labels = numbered(100)
    for part in split(images, labels):
        chosen, numbers = part.tensors
        assert torch.equal(chosen, images[numbers].unsqueeze(1) / 255)


def test_split_depends_on_the_seed_alone() -> None:
    data = numbered(100)
    torch.manual_seed(1)
    first = split(*data, seed=3).train.tensors[1]
    torch.manual_seed(2)
    assert torch.equal(split(*data, seed=3).train.tensors[1], first)
    assert not torch.equal(split(*data, seed=4).train.tensors[1], first)
    assert not torch.equal(first, torch.arange(70))


def test_split_leaves_the_global_random_state() -> None:
    before = torch.get_rng_state()
    split(*numbered(100), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_split_leaves_its_input() -> None:
    images, labels = numbered(100)
    split(images, labels)
    assert torch.equal(images, numbered(100)[0])
    assert torch.equal(labels, numbered(100)[1])


def test_split_makes_labels_int64() -> None:
    images, labels = numbered(10)
    assert split(images, labels.to(torch.uint8)).test.tensors[1].dtype == torch.int64


def test_split_refuses_mismatched_lengths() -> None:
    with pytest.raises(ValueError, match="10 images but 9 labels"):
        split(numbered(10)[0], torch.arange(9))


@pytest.mark.parametrize("count", [0, 4])
def test_split_refuses_too_few_images(count: int) -> None:
    with pytest.raises(ValueError, match=f"at least 5 images, got {count}"):
        split(*numbered(count))


def test_split_refuses_other_shapes() -> None:
    images, labels = numbered(10)
    with pytest.raises(ValueError, match="shape"):
        split(images.unsqueeze(1), labels)
    with pytest.raises(ValueError, match="shape"):
        split(images, labels.unsqueeze(1))


def test_split_refuses_images_that_are_scaled_already() -> None:
    images, labels = numbered(10)
    with pytest.raises(TypeError, match="float32"):
        split(images / 255, labels)


# The script


def test_draw_is_balanced_ascending_and_seeded(script: ModuleType) -> None:
    labels = np.arange(200) % 10
    chosen = script.draw(labels, 4, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [4] * 10
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(script.draw(labels, 4, seed=0), chosen)
    assert (script.draw(labels, 4, seed=1) != chosen).any()


def test_draw_refuses_a_class_with_too_few(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="class 9 has 1 examples, need 2"):
        script.draw(np.arange(19) % 10, 2, seed=0)


def test_script_on_the_imitation(
    script: ModuleType,
    fake_full: FakeFull,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, expected = fake_full
    monkeypatch.setattr(script, "PER_CLASS", 3)
    for output in ("first", "second"):
        script.main(["--data-dir", str(folder), "--output", str(tmp_path / output)])
    assert "mnist-10k.npz" in capsys.readouterr().out
    for name in NAMES:
        path = tmp_path / "first" / file_name(name)
        assert path.read_bytes() == (tmp_path / "second" / file_name(name)).read_bytes()
        with np.load(path) as parts:
            images, labels = decode(parts["mask"], parts["residuals"], 28), parts["labels"]
        chosen = script.draw(expected[name][1].numpy(), 3, seed=0)
        np.testing.assert_array_equal(images, expected[name][0].numpy()[chosen])
        np.testing.assert_array_equal(labels, expected[name][1].numpy()[chosen])


# The real full sets


@needs_full
@each_name
def test_real_full_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIT_SNN_DATA", FULL_DIR)
    images, labels = load(name)
    assert images.shape == (70_000, 28, 28)
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(10))


@needs_full
@each_name
def test_subset_is_part_of_the_real_full_set(name: str) -> None:
    images, labels = (tensor.numpy() for tensor in load(name, FULL_DIR))
    known = {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}
    for image, label in zip(*load_subset(name), strict=True):
        assert (image.tobytes(), int(label)) in known


@needs_full
def test_script_makes_the_packaged_files_again(script: ModuleType, tmp_path: Path) -> None:
    script.main(["--data-dir", FULL_DIR, "--output", str(tmp_path)])
    for name in NAMES:
        packaged = ROOT / "nit_snn" / "datasets" / file_name(name)
        assert (tmp_path / file_name(name)).read_bytes() == packaged.read_bytes()


@pytest.mark.parametrize("folder", [-1, 0, False, ["data"], b"data"])
def test_a_folder_is_a_path(folder: object) -> None:
    with pytest.raises(TypeError, match="data_dir must be a path or None"):
        load("mnist", folder)  # type: ignore[arg-type]
