"""A model's weights are the files', bit for bit, in the dtype that they are used in; and no file stays in
memory beside them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanomed import hub
from nanomed.evaluation.measure import open_model
from nanomed.models.classifier import Classifier
from nanomed.models.lora import LoRAConfig, inject
from nanomed.models.prepacked import available, head_of
from nanomed.precision import DTYPES, store_frozen
from nanomed.tensors import tensors
from tests.conftest import ROOT, every_family, make_hf_model

CPU = torch.device("cpu")
needs_maps = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists what is mapped")


def mapped(directory: Path) -> int:
    """Bytes of the files of a directory that are mapped into this process."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [line[0].split("-") for line in lines if line[-1].startswith(f"{directory}/")]
    return sum(int(end, 16) - int(begin, 16) for begin, end in ranges)


def rewritten(source: Path, out: Path, dtype: torch.dtype) -> Path:
    """A model's directory once more, its weights in another dtype."""
    for path in source.iterdir():
        if path.is_file() and path.name != "model.safetensors":
            (out / path.name).write_bytes(path.read_bytes())
    state = {k: v.to(dtype) for k, v in load_file(source / "model.safetensors").items()}
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    return out


def by_name(model, directory: Path) -> dict[str, torch.Tensor]:
    """What transformers' file says that each parameter is, as safetensors reads it."""
    state = load_file(directory / "model.safetensors")
    state = {k: v.t() if k.endswith(model.family.CONV1D) and v.dim() == 2 else v for k, v in state.items()}
    return {name: state[name] for name, _ in model.named_parameters()}


@every_family
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("file", ["fp32", "bf16", "fp16"])
def test_weights_are_the_files_in_the_dtype_that_they_are_used_in(model_dir, tmp_path, file, dtype):
    rewritten(model_dir, tmp_path, DTYPES[file])
    for opened in (
        open_model(str(tmp_path), "cpu", dtype, plain=True).model,
        hub.load_model(hub.find(str(tmp_path))),
    ):
        frozen = {f"{n}.weight" for n, m in opened.backbone.named_modules() if isinstance(m, torch.nn.Linear)}
        frozen |= {name.replace(".weight", ".bias") for name in frozen}
        for name, found in by_name(opened, tmp_path).items():
            p, plain = opened.get_parameter(name), opened.training  # load_model() gives fp32
            narrow = not plain and name.removeprefix(f"{opened.family.BACKBONE}.") in frozen
            assert p.dtype == (DTYPES[dtype] if narrow else torch.float32), name
            assert p.is_contiguous() and torch.equal(p, found.float().to(p.dtype)), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_head_is_the_embedding_only_where_it_is_tied(tmp_path, bpe_dir, family, tied):
    theirs = make_hf_model(tmp_path, bpe_dir, family=family, tie_word_embeddings=tied)
    model = open_model(str(tmp_path), "cpu", "fp32").model
    embedding = model.get_parameter(model.family.EMBEDDING)
    assert torch.equal(embedding, theirs.get_input_embeddings().weight)
    assert torch.equal(model.lm_head.weight, theirs.get_output_embeddings().weight)
    assert (model.lm_head.weight.data_ptr() == embedding.data_ptr()) == tied
    x = torch.randn(3, model.config.n_embd)
    expected = x @ theirs.get_output_embeddings().weight.T
    head = head_of(model)
    found = (
        torch.ops.mkldnn._linear_pointwise(x, head, None, "none", [], "") if head.is_mkldnn else x @ head.T
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("file", ["fp32", "bf16"])
def test_an_adapter_over_weights_as_they_are_stored(model_dir, tmp_path, file):
    """Plain LoRA beside them, and a classifier's; with fp32's sums."""
    base, a, c = (tmp_path / name for name in ("base", "a", "c"))
    base.mkdir()
    rewritten(model_dir, base, DTYPES[file])
    model = hub.load_model(hub.find(str(base)))
    inject(model, LoRAConfig(2, 4.0, 0.0, ("c_attn",)))
    torch.nn.init.normal_(model.backbone.h[0].attn.c_attn.lora_B.weight)
    hub.save_adapter(model, a, str(base), base)
    hub.save_adapter(Classifier(model, ["x", "y"], False, 0), c, str(base), base)
    x = torch.arange(12)[None]
    expected = model.eval().backbone(x)
    for directory, load in ((a, hub.load_model), (c, hub.load_classifier)):
        found = load(hub.find(str(directory)), as_stored=True).eval().requires_grad_(False)
        store_frozen(found, "fp32", CPU)
        assert torch.equal(found.backbone(x), expected)


@needs_maps
@pytest.mark.parametrize("file", ["fp32", "bf16"])
def test_of_a_file_only_what_is_used_as_it_is_stays_mapped(tmp_path, bpe_dir, file):
    make_hf_model(tmp_path, bpe_dir, family="llama", hidden_size=256, intermediate_size=1024)
    rewritten(tmp_path, tmp_path, DTYPES[file])
    size = (tmp_path / "model.safetensors").stat().st_size
    model = hub.load_model(hub.find(str(tmp_path)))
    assert (mapped(tmp_path) == 0) == (file == "bf16")  # what is fp32 there is used from there
    del model
    assert mapped(tmp_path) == 0
    model = hub.load_model(hub.find(str(tmp_path)), quantize="nf4")
    ends = sum(p.numel() for n, p in model.named_parameters() if "layers" not in n) * 4
    assert mapped(tmp_path) < ends + 2**16 < size / 2
    model = open_model(str(tmp_path), "cpu", "fp32").model
    if available(torch.zeros(1)):
        assert mapped(tmp_path) < ends + 2**16
    del model
    assert mapped(tmp_path) == 0


def test_tensors_of_every_kind_are_read_as_safetensors_reads_them(tmp_path):
    torch.manual_seed(0)
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.bool]
    state = {str(kind): (torch.randn(3, 5) * 9).to(kind) for kind in [*kinds, torch.uint8]}
    state |= {"none": torch.zeros(0, 4), "one": torch.tensor(3.5), "large": torch.randn(100, 999)}
    save_file(state, tmp_path / "a.safetensors")
    found = dict(tensors(tmp_path / "a.safetensors"))
    assert found.keys() == state.keys()
    for key, value in state.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape
        assert torch.equal(found[key], value)


@needs_maps
def test_many_small_tensors_do_not_hold_many_files_open(tmp_path):
    save_file({str(k): torch.full((20,), k) for k in range(500)}, tmp_path / "a.safetensors")
    before = len(list(Path("/proc/self/fd").iterdir()))
    found = dict(tensors(tmp_path / "a.safetensors"))
    assert len(found) == 500 and len(list(Path("/proc/self/fd").iterdir())) < before + 10


def test_a_tensor_that_is_changed_leaves_its_file_as_it_was(tmp_path):
    save_file({"a": torch.ones(2**16)}, tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    ((_, a),) = tensors(tmp_path / "a.safetensors")
    a.add_(1)
    assert (tmp_path / "a.safetensors").read_bytes() == before and a.sum() == 2**17


def test_a_header_of_any_length_is_read(tmp_path):
    """Numbers that begin at any byte: safetensors pads its own headers, others do not."""
    save_file({"a": torch.arange(9.0)}, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    n = int.from_bytes(whole[:8], "little")
    header = json.dumps(json.loads(whole[8 : 8 + n])).encode()
    header += b" " * (3 - len(header) % 4)
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + n :])
    assert (8 + len(header)) % 4
    ((_, a),) = tensors(tmp_path / "a.safetensors")
    assert torch.equal(a, load_file(tmp_path / "a.safetensors")["a"])


def test_a_model_without_weights_needs_no_compiler_and_is_freed_at_once(model_dir):
    """PyTorch's own way to draw numbers on the meta device loads 800 modules, which keep the first model."""
    code = (
        "import gc, sys, weakref; from nanomed.evaluation.measure import open_model; gc.disable(); gc.freeze();"
        " model = open_model(sys.argv[1], 'cpu', 'fp32').model; ref = weakref.ref(model); del model;"
        " assert ref() is None, 'it is still there'; assert 'sympy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, model_dir], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
