"""What a base needs of memory is told before it is loaded, and what cannot fit is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chatbot.engine.factory import start_engine
from chatbot.engine.machine.hardware import available_bytes
from chatbot.engine.machine.memory_need import MemoryNeedError, ModelSize, serving_need
from chatbot.engine.settings import EngineSettings
from tests.fixtures import tiny_models
from tests.fixtures.snapshots import write_corrections
from training.recipe import Recipe
from training.train import train_adapter
from training.training_need import Batches, training_need

GB = 10**9


def write_giant(folder: Path, layers: int = 80) -> Path:
    """Write a base as large as Llama-70B, whose weights are holes in a sparse file."""
    tiny_models.write_model(folder)
    config = json.loads((folder / "config.json").read_text())
    sizes = {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": layers,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 8192,
    }
    (folder / "config.json").write_text(json.dumps(config | sizes))
    header, end = {}, 0
    for layer in range(layers):
        for name, shape in (("q_proj", (8192, 8192)), ("gate_proj", (28672, 8192))):
            start, end = end, end + 2 * shape[0] * shape[1]
            key = f"model.layers.{layer}.{name}.weight"
            header[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder


def test_what_cannot_fit_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    folder = write_giant(tmp_path / "giant", layers=1000)  # 604 GB, more than any machine here has
    with pytest.raises(MemoryNeedError) as refusal:
        start_engine(EngineSettings(workers=0), str(folder))
    assert "needs at least 604.0 GB of memory, and " in str(refusal.value)
    assert "can be had. Take a smaller base" in str(refusal.value)


def test_the_need_follows_from_headers_and_settings(tmp_path: Path) -> None:
    folder = write_giant(tmp_path / "giant")
    size = ModelSize.read(folder)
    assert size.weights == 2 * 80 * (8192 * 8192 + 28672 * 8192)
    assert size.cache(1) == 2 * 80 * 8 * 128 * 2
    need = serving_need("org/giant", folder, EngineSettings(slots=4, workers=2, prefix_mb=0))
    fits = need.describe(200 * GB)
    assert fits == (
        "Serving org/giant takes 96.6 GB for weights, up to 10.7 GB for 4 streams of 4096 tokens; "
        "200.0 GB of memory can be had"
    )
    assert need.describe(100 * GB).endswith(
        "It may run out. Take a smaller base, fewer [engine] workers or slots, or a lower "
        "max_length."
    )
    with pytest.raises(MemoryNeedError, match=r"at least 96\.6 GB of memory, and 90\.0 GB"):
        need.describe(90 * GB)


def phase(bytes_of_answer: int, answers: int = 8, max_length: int | None = 1024) -> Batches:
    row = {"prompt": [{"content": "Hello?"}], "completion": [{"content": "x" * bytes_of_answer}]}
    return Batches([row], answers, max_length)


def test_training_needs_more_for_longer_answers_and_larger_batches(tmp_path: Path) -> None:
    folder = write_giant(tmp_path / "giant")

    def most(*phases: Batches) -> int:
        return sum(part.most for part in training_need("org/giant", folder, phases).parts)

    short = most(phase(30))
    assert short < most(phase(3000)) < most(phase(3000, answers=16))
    assert most(phase(30), phase(3000)) == most(phase(3000))
    assert most(phase(10**6)) == most(phase(10**9)), "what is longer than max_length never trains"
    line = training_need("org/giant", folder, [phase(3000)]).describe(1000 * GB)
    assert "takes 48.3 GB for weights, 4.1 GB for the adapter and its optimizer, up to" in line
    assert line.endswith(
        "for 8 answers at once of about 1002 tokens; 1000.0 GB of memory can be had"
    )


def test_a_training_that_cannot_fit_ends_before_it_begins(tmp_path: Path) -> None:
    folder = write_giant(tmp_path / "giant", layers=1000)
    snapshot = write_corrections(tmp_path)
    with pytest.raises(MemoryNeedError, match=r"Training on .*\[training.sft\]"):
        train_adapter(snapshot.folder, str(folder), None, tmp_path / "adapters", Recipe())


def test_weights_that_lie_there_twice_are_counted_once(tmp_path: Path) -> None:
    folder = tiny_models.write_model(tmp_path)
    once = ModelSize.read(folder).weights
    (folder / "consolidated.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert ModelSize.read(folder).weights == once


# -- What there is

LIMIT, USED, CACHED, FREE, SWAP = 900 << 20, 500 << 20, 100 << 20, 8 << 30, 2 << 30
CGROUP_V2 = ("0::/pod/app", "", "memory.max", "memory.current", "inactive_file")
CGROUP_V1 = (
    "4:cpu:/elsewhere\n3:memory:/pod/app",
    "memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
)


def write_kernel_files(root: Path) -> Path:
    """Write what the kernel says of a machine with 8 GiB to be had, and swap."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemFree: 1 kB\nMemAvailable: {FREE >> 10} kB\nSwapFree: {SWAP >> 10} kB\n"
    )
    return root


@pytest.mark.parametrize(("group", "mount", "limit", "usage", "cached"), [CGROUP_V2, CGROUP_V1])
@pytest.mark.parametrize("where", ["pod", "pod/app"])
def test_the_narrowest_container_around_us_counts_without_its_caches(
    tmp_path: Path, where: str, group: str, mount: str, limit: str, usage: str, cached: str
) -> None:
    root = write_kernel_files(tmp_path)
    (root / "proc/self/cgroup").write_text(f"{group}\n")
    (root / "sys/fs/cgroup" / mount / "pod/app").mkdir(parents=True)
    assert available_bytes(root) == FREE
    folder = root / "sys/fs/cgroup" / mount / where
    (folder / limit).write_text("max\n")
    (folder / usage).write_text(f"{USED}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{cached} {CACHED}\n")
    assert available_bytes(root) == FREE
    (folder / limit).write_text(f"{LIMIT}\n")
    assert available_bytes(root) == LIMIT - USED + CACHED


def test_swap_counts_only_for_what_is_possible_at_all(tmp_path: Path) -> None:
    root = write_kernel_files(tmp_path)
    assert (available_bytes(root), available_bytes(root, swap=True)) == (FREE, FREE + SWAP)


SAY_WHAT_IS_LEFT = (
    "from chatbot.engine.machine.hardware import available_bytes; print(available_bytes())"
)


def test_a_ulimit_is_what_there_is() -> None:
    command = f"ulimit -v 4000000; exec {sys.executable} -c '{SAY_WHAT_IS_LEFT}'"
    assert 0 < int(subprocess.check_output(["bash", "-c", command])) < 4_000_000 * 1024


def test_a_containers_limit_is_what_there_is() -> None:
    """In a real cgroup, where the machine lets us make one."""
    with small_cgroup(256 << 20) as group:
        command = f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -c '{SAY_WHAT_IS_LEFT}'"
        assert 0 < int(subprocess.check_output(["bash", "-c", command])) <= 256 << 20


@contextmanager
def small_cgroup(size: int) -> Iterator[Path]:
    """Make a cgroup with so many bytes of memory; skip the test where that is refused."""
    root = Path("/sys/fs/cgroup")
    v1 = (root / "memory").is_dir()
    group = root / ("memory" if v1 else "") / f"talkback-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("only root may make cgroups")
    try:
        limit = group / ("memory.limit_in_bytes" if v1 else "memory.max")
        if not limit.is_file():
            pytest.skip("the memory controller is off")
        limit.write_text(str(size))
        yield group
    finally:
        group.rmdir()
