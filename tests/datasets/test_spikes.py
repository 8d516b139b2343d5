"""The embedded spikes, and the script that made them of recordings."""

import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from nit_snn.datasets import load, load_spikes
from nit_snn.datasets.embedded import read_embedded
from nit_snn.datasets.spikes import SHA256, SPEAKERS, file_name
from nit_snn.errors import DatasetError

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = Path(os.environ.get("NIT_SNN_DATA") or "nowhere") / "FSDD"
needs_recordings = pytest.mark.skipif(
    not RECORDINGS.is_dir(), reason="no recordings in FSDD, in the folder that NIT_SNN_DATA names"
)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script, which is not part of the package."""
    pytest.importorskip("scipy")
    sys.path.insert(0, str(ROOT / "scripts"))
    import make_spoken_digits

    sys.path.remove(str(ROOT / "scripts"))
    return make_spoken_digits


def write_recording(path: Path, samples: np.ndarray, rate: int = 8000) -> None:
    from scipy.io import wavfile

    wavfile.write(path, rate, samples)


def test_shapes_types_and_balance() -> None:
    data = load_spikes("spoken-digits")
    assert data.spikes.shape == (3000, 64, 80) and data.spikes.dtype == torch.uint8
    assert data.spikes.max() == 1
    assert data.labels.dtype == torch.int64 and data.labels.bincount().tolist() == [300] * 10
    assert data.test.dtype == torch.bool
    assert data.labels[data.test].bincount().tolist() == [30] * 10
    assert sorted(set(data.speaker)) == list(SPEAKERS)
    assert len(data.labels[:10].unique()) == 10  # mixed
    on, off = data.spikes[..., :40], data.spikes[..., 40:]
    assert not (on & off).any()
    assert (on.sum((1, 2)) > 20).all()


def test_no_recording_twice() -> None:
    spikes = load_spikes("spoken-digits").spikes.numpy()
    assert len({one.tobytes() for one in spikes}) == 3000


@pytest.mark.parametrize("speaker", SPEAKERS)
def test_a_speaker_held_out(speaker: str) -> None:
    data = load_spikes("spoken-digits", held_out=speaker)
    assert data.labels[data.test].bincount().tolist() == [50] * 10
    assert set(data.speaker[data.test.numpy()]) == {speaker}
    assert speaker not in data.speaker[~data.test.numpy()]


def test_wrong_names_list_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'spoken'.*mnist, fashion-mnist.*spoken-digits"):
        load_spikes("spoken")
    with pytest.raises(ValueError, match=r"'spoken'.*mnist, fashion-mnist.*spoken-digits"):
        load("spoken")
    with pytest.raises(ValueError, match=r"are spikes: load_spikes\('spoken-digits'\)"):
        load("spoken-digits")
    with pytest.raises(ValueError, match=r"are images: load\('mnist'\)"):
        load_spikes("mnist")
    with pytest.raises(ValueError, match=r"unknown speaker 'ann': hold out one of george, jackson"):
        load_spikes("spoken-digits", held_out="ann")


def test_file_is_small_and_has_a_licence() -> None:
    folder = ROOT / "nit_snn" / "datasets"
    assert (folder / file_name("spoken-digits")).stat().st_size < 500_000
    licence = (folder / "LICENSE-spoken-digits.md").read_text(encoding="utf-8")
    assert file_name("spoken-digits") in licence and "CC BY-SA 4.0" in licence
    assert "CC-BY-SA-4.0" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / file_name("spoken-digits")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_embedded(path, SHA256)
    path.write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"spoken-digits\.npz is damaged: 7 bytes"):
        read_embedded(path, SHA256)


# The script


def test_a_tone_is_heard_in_its_band(script: ModuleType) -> None:
    time = np.arange(4000) / 8000
    for hertz in (300, 1000, 3000):
        found = script.energies((8000 * np.sin(2 * np.pi * hertz * time)).astype(np.int16))
        assert found.shape == (50, 40)
        mel = 2595 * np.log10(1 + np.array([50, hertz, 4000]) / 700)
        band = 41 * (mel[1] - mel[0]) / (mel[2] - mel[0]) - 1
        assert abs(found[25].argmax() - band) < 1


def test_spikes_follow_the_energy(script: ModuleType) -> None:
    """ON spikes less OFF spikes, times 6 dB, stay within 6 dB of a level that changes slowly."""
    level = np.concatenate([np.linspace(-50, 0, 20), np.linspace(0, -30, 20)])
    energy = 10 ** (level / 10)[:, None] * np.ones(40)
    spikes = script.modulate(energy).astype(int)
    assert spikes.shape == (64, 80) and not spikes[40:].any()
    reference = -50 + 6 * (spikes[:, :40] - spikes[:, 40:]).cumsum(0)
    assert (abs(reference[:40] - level[:, None]) <= 6).all()


def test_silence_has_no_spikes(script: ModuleType) -> None:
    energy = np.full((30, 40), 1e-8)
    energy[:, 0] = 1  # 80 dB above the rest
    assert not script.modulate(energy)[:, 1:40].any()


def test_script_on_an_imitation(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.RandomState(0)
    (tmp_path / "recordings").mkdir()
    for name in ("3_theo_7", "4_george_4", "5_george_10"):
        sound = rng.randint(-9000, 9000, 3000).astype(np.int16)
        write_recording(tmp_path / "recordings" / f"{name}.wav", sound)
    for output in ("first", "second"):
        script.main(["--data-dir", str(tmp_path), "--output", str(tmp_path / output)])
    assert "spoken-digits.npz" in capsys.readouterr().out
    first, second = (tmp_path / name / "spoken-digits.npz" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    with np.load(first) as parts:
        assert parts["labels"].tolist() == [4, 3, 5]
        assert parts["speakers"].tolist() == [0, 4, 0]
        assert parts["test"].tolist() == [1, 0, 0]
        expected = script.read(tmp_path / "recordings" / "3_theo_7.wav")
        np.testing.assert_array_equal(np.unpackbits(parts["spikes"][1], axis=1), expected)


def test_script_refuses_what_it_cannot_read(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file like 0_george_0\.wav in"):
        script.main(["--data-dir", str(tmp_path)])
    write_recording(tmp_path / "0_george_0.wav", np.zeros(900, np.int16), rate=16000)
    with pytest.raises(ValueError, match=r"0_george_0\.wav has 16000 Hz"):
        script.main(["--data-dir", str(tmp_path), "--output", str(tmp_path / "out")])


@needs_recordings
def test_script_makes_the_packaged_file_again(script: ModuleType, tmp_path: Path) -> None:
    script.main(["--data-dir", str(RECORDINGS), "--output", str(tmp_path)])
    made = tmp_path / file_name("spoken-digits")
    packaged = ROOT / "nit_snn" / "datasets" / file_name("spoken-digits")
    assert made.read_bytes() == packaged.read_bytes()
