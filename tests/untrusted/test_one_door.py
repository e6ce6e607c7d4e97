"""What others may have made goes through ``lit_distill.untrusted``: nothing else opens, parses or builds it.

Whoever adds such a call either uses that room, or lists the function below with the reason why it may do without.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lit_distill

SOURCE = Path(lit_distill.__file__).parent
ROOM = "lit_distill.untrusted"

NAMES = frozenset(
    {
        "yaml.load", "yaml.load_all", "yaml.safe_load", "yaml.safe_load_all", "yaml.full_load", "yaml.unsafe_load",
        "yaml.compose", "yaml.parse", "yaml.compose_all", "yaml.scan", "json.load", "json.loads", "json.JSONDecoder",
        "tomllib.load", "tomllib.loads", "ast.literal_eval", "omegaconf.OmegaConf.create", "omegaconf.OmegaConf.load",
        "omegaconf.OmegaConf.from_dotlist", "omegaconf.DictConfig", "hydra.compose", "hydra.utils.instantiate",
        "hydra.utils.call", "hydra.utils.get_class", "hydra.utils.get_method", "hydra.utils.get_object", "eval", "exec",
        "compile", "__import__", "importlib.import_module", "pkgutil.resolve_name", "runpy.run_module",
        "runpy.run_path", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads",
        "shelve.open", "torch.load", "torch.jit.load", "torch.export.load", "torch.hub.load",
        "torch.package.PackageImporter", "numpy.load", "numpy.fromfile", "numpy.memmap", "numpy.loadtxt",
        "numpy.genfromtxt", "numpy.fromstring", "safetensors.safe_open", "safetensors.deserialize",
        "safetensors.torch.load", "safetensors.torch.load_file", "onnx.load", "onnx.load_model",
        "onnxruntime.InferenceSession", "PIL.Image.open", "av.open", "torchvision.io.read_image",
        "torchvision.io.read_video", "cv2.imread", "cv2.VideoCapture", "tarfile.open", "tarfile.TarFile",
        "zipfile.ZipFile", "zipfile.is_zipfile", "gzip.open", "bz2.open", "lzma.open", "shutil.unpack_archive",
        "csv.reader", "csv.DictReader", "xml.etree.ElementTree.parse", "fsspec.open", "fsspec.filesystem",
        "urllib.request.urlopen", "open", "io.open", "os.open", "os.fdopen", "codecs.open", "mmap.mmap",
        "subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output", "subprocess.check_call",
        "os.system", "os.popen", "os.execv", "os.execvp", "os.posix_spawn",
    }
)  # fmt: skip
METHODS = frozenset({"open", "read_text", "read_bytes", "unpack_archive", "InferenceSession", "url_to_fs"})
TYPES = frozenset(
    {"omegaconf.DictConfig", "tarfile.TarFile", "subprocess.Popen"}
)  # they only count where they are called
BUILT_IN = frozenset(name for name in NAMES if "." not in name)

OWN_CONFIG = "what the user composed from folders and overrides is the user's own code"
OWN_NAME = "the name stands in this library's source"
OWN_OUTPUT = "this process has just written it itself"
OWN_PROCESS = "starts this library again, by arguments and no shell"
OWN_CACHE = "a file of this user's cache, held against what it says of itself"
LIMITED = "bytes of a regular file that was looked at before, within limits"
OWN_ARGUMENT = "the argument compile, which hides Python's function"
ALLOWED: dict[tuple[str, str], str] = {
    ("", "__getattr__"): OWN_NAME,
    ("_command.command", "command_config"): OWN_CONFIG,
    ("_command.command", "read_config"): OWN_CONFIG,
    ("_command.completion", "_Config._read"): OWN_CONFIG,
    ("_command.completion", "_arguments"): OWN_NAME,
    ("_command.completion", "_arguments_of"): "words of the shell's own process, from /proc",
    ("_command.overrides", "arguments_of"): OWN_CONFIG,
    ("_command.run", "_Task.__call__"): OWN_NAME,
    ("_command.run", "_unknown_argument"): OWN_CONFIG,
    ("_files", "_remove_leftovers"): "opened for its lock alone",
    ("_files", "_synchronise"): "a folder, to bring it to disk",
    ("_files", "create_file"): "makes a file that is not there",
    ("_files", "open_log"): "opened to add to, follows no link, waits for nobody",
    ("_files", "archive_damage"): "reads checksums, unpacks nothing to disk",
    ("_files", "described_fault"): "a record of an open archive, as steps that none takes",
    ("_files", "is_archive"): "looks at four bytes",
    ("callbacks.preemption", "_requeue"): "SLURM's own command, by a number from the environment",
    ("checkpoints", "_read"): "weights_only, after its checksums",
    ("checkpoints", "write_checkpoint"): OWN_OUTPUT,
    ("cli", "main"): OWN_NAME,
    ("comparison.compare", "_prepare"): OWN_CONFIG,
    ("comparison.plan", "_planned"): OWN_CONFIG,
    ("comparison.record", "_processor"): "/proc/cpuinfo of the kernel",
    ("data.catalogue.archives", "Archives.open"): "shards within the root, or an address that the user typed",
    ("data.catalogue.archives", "MemberFile._open"): "by the method above",
    ("data.catalogue.video_index", "VideoIndex._entry"): OWN_CACHE,
    ("data.catalogue.video_index", "_path_of"): OWN_CACHE,
    ("data.datasets", "VideoDataset._clip"): "the source's own method",
    ("data.datasets", "VideoDataset.frame_size"): "the source's own method",
    ("data.decoding.container", "_open"): LIMITED,
    ("data.index", "run"): OWN_CONFIG,
    ("data.moving_digits.making", "_run_workers"): OWN_PROCESS,
    ("data.moving_digits.making", "find_fault"): OWN_CACHE,
    ("data.moving_digits.rendering", "Sources.load"): "arrays alone: allow_pickle=False",
    ("data.moving_digits.rendering", "work"): OWN_OUTPUT,
    ("data.pack", "_fill"): "videos that the data set has admitted",
    ("data.pack", "run"): OWN_CONFIG,
    ("data.sources.base", "Source.check"): "the source's own method",
    ("data.sources.shards", "_known"): OWN_CACHE,
    ("data.sources.shards", "_label"): "at most a megabyte, and only a number or text is taken of it",
    ("data.sources.shards", "scan_shard"): "by Archives",
    ("data.sources.shards", "shard_names"): "by Archives",
    ("training.fit", "_terms"): OWN_CONFIG,
    ("inference.export", "_write"): OWN_OUTPUT,
    ("inference.export", "run"): OWN_OUTPUT,
    ("inference.exported", "load_program"): "only with --allow torch.export.load, or what this process has written",
    ("inference.onnx_files", "OnnxNetwork.__init__"): "bytes, so that external data is refused",
    ("inference.onnx_files", "_imported"): OWN_NAME,
    ("inference.rows", "RowFile._resumed"): "the descriptor of a regular file that is no link",
    ("inference.rows", "RowFile._counted"): "rows of this user's own command, held against its inputs",
    ("inference.rows", "RowFile.finish"): OWN_OUTPUT,
    ("inference.test", "run"): OWN_CONFIG,
    ("media.pictures", "_to_wandb"): OWN_OUTPUT,
    ("models.state_files", "read_safetensors"): "tensors alone, of a regular file",
    ("models.state_files", "_read_torch"): "weights_only, after its checksums",
    ("paddlevideo.config", "_written"): "reads back what it writes itself, before it is written",
    ("paddlevideo.yaml_lines", "Source.__init__"): "nodes of YAML: nothing is constructed of a tag",
    ("paddlevideo.yaml_lines", "_converted"): "a literal of less than 64 characters",
    ("reporting.report", "run"): OWN_CONFIG,
    ("runs.metrics_csv", "read_rows"): "text a line at a time, numbers are made of it",
    ("runs.processes", "start_process"): OWN_PROCESS,
    ("runs.resume", "_as_written"): OWN_CONFIG,
    ("runs.resume", "inherited_point"): "a variable that the process of this run has set",
    ("searching.space", "axes_of"): OWN_CONFIG,
    ("teacher_cache.shards", "Shard.__init__"): OWN_CACHE,
    ("training.fit", "build_module"): OWN_CONFIG,
    ("training.fit", "build_data"): OWN_CONFIG,
    ("training.fit", "fit"): OWN_CONFIG,
    ("training.stages", "stages_of"): OWN_CONFIG,
    ("_module.compiling", "StepCompiler.__init__"): OWN_ARGUMENT,
    ("composer", "LossComposer.compiled"): OWN_ARGUMENT,
    ("mixin", "DistillMixin.distill"): OWN_ARGUMENT,
    ("module", "DistillModule.__init__"): OWN_ARGUMENT,
}


def calls(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Function and name of whatever a module refers to that opens, parses, builds or runs."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def full(node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return known.get(node.id, node.id if node.id in BUILT_IN else "")
        if isinstance(node, ast.Attribute) and (owner := full(node.value)):
            return f"{owner}.{node.attr}"
        return ""

    def visit(node: ast.AST, place: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inside = f"{place}.{node.name}".lstrip(".")
            for part in ast.iter_child_nodes(node):
                # what decorators and defaults name is looked up where the function stands
                yield from visit(part, inside)
            return
        by_module = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and bool(full(node.func.value))
        if isinstance(node, ast.Call) and _writes(node, by_module):
            for part in (*node.args, *(keyword.value for keyword in node.keywords)):
                yield from visit(part, place)
            yield from visit(node.func.value, place) if isinstance(node.func, ast.Attribute) else ()
            return
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            for argument in node.args[1:2]:
                text = str(argument.value) if isinstance(argument, ast.Constant) else "?"
                owner = full(node.args[0])
                if text in METHODS or f"{owner}.{text}" in NAMES:
                    yield place, f"getattr {text}"
        if isinstance(node, ast.Call) and full(node.func) in TYPES:
            yield place, full(node.func)
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            name = full(node)
            if name in NAMES and name not in TYPES:
                yield place, name
                return
            if isinstance(node, ast.Attribute) and node.attr in METHODS:
                yield place, f".{node.attr}"
        for part in ast.iter_child_nodes(node):
            yield from visit(part, place)

    yield from visit(tree, "")


def _writes(call: ast.Call, by_module: bool) -> bool:
    """Whether it opens a file to write alone: ``open(path, "wb")``, ``path.open("x")``."""
    if isinstance(call.func, ast.Name) and call.func.id == "open":
        place = 1
    elif isinstance(call.func, ast.Attribute) and call.func.attr == "open":
        place = int(by_module)
    else:
        return False
    modes = [*call.args[place : place + 1], *(word.value for word in call.keywords if word.arg == "mode")]
    return any(
        isinstance(mode, ast.Constant) and isinstance(mode.value, str) and mode.value[:1] in ("w", "x", "a")
        and "+" not in mode.value and len(mode.value) <= 3
        for mode in modes
    )  # fmt: skip


def modules() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(SOURCE.rglob("*.py")):
        parts = ["lit_distill", *file.relative_to(SOURCE).with_suffix("").parts]
        name = ".".join(parts).removesuffix(".__init__")
        if name != ROOM and not name.startswith(f"{ROOM}."):
            yield name, ast.parse(file.read_text(encoding="utf-8"))


def test_nothing_else_opens_parses_or_builds() -> None:
    found = {
        (module.removeprefix("lit_distill").removeprefix("."), place): name
        for module, tree in modules()
        for place, name in calls(tree)
    }
    unlisted = [f"{module}: {place or 'the module'} calls {found[module, place]}" for module, place in found
                if (module, place) not in ALLOWED]  # fmt: skip
    assert not unlisted, "go through lit_distill.untrusted, or list it in ALLOWED with a reason"
    assert not [entry for entry in ALLOWED if entry not in found], "listed, and no longer there"
    assert all(len(reason) > 10 for reason in ALLOWED.values())


@pytest.mark.parametrize(
    "text",
    [
        "import yaml\nyaml.safe_load('a')",
        "import yaml as y\ndef f(): return y.load('a', y.SafeLoader)",
        "from yaml import safe_load as read\ndef f(): return read('a')",
        "import json\nclass A:\n    def f(self): return json.loads('1')",
        "import json\nf = json.load",
        "import json\ndef f(read=json.loads): return read('1')",
        "import json\nf = getattr(json, 'loads')",
        "from functools import partial\nfrom hydra.utils import instantiate\nf = partial(instantiate)",
        "import hydra\nhydra.utils.instantiate({})",
        "from omegaconf import OmegaConf\nOmegaConf.create({})",
        "from omegaconf import OmegaConf as O\nO.load('a')",
        "from PIL import Image\nImage.open('a')",
        "import PIL.Image\nPIL.Image.open('a')",
        "import av\nav.open('a')",
        "import torch\ntorch.load('a')",
        "import torch\nwith torch.no_grad():\n    x = [torch.load(a) for a in ()]",
        "from safetensors import safe_open\nwith safe_open('a', framework='pt') as f: pass",
        "from safetensors.torch import load_file\nload_file('a')",
        "import onnx\nonnx.load('a')",
        "import tarfile\ntarfile.open('a')",
        "import zipfile\nzipfile.ZipFile('a')",
        "import pickle\npickle.loads(b'')",
        "import pickle\nclass A(pickle.Unpickler): pass",
        "import numpy as np\nnp.load('a')",
        "open('a')",
        "open('a', 'r+')",
        "open('a', mode='rb')",
        "open('a', 'w+b')",
        "def f(mode): return open('a', mode)",
        "from pathlib import Path\nPath('a').read_text()",
        "from pathlib import Path\nPath('a').open()",
        "from pathlib import Path\nread = Path.read_bytes",
        "import os\nos.open('a', os.O_RDONLY)",
        "import io\nio.open('a')",
        "@eval\ndef f(): pass",
        "lambda x: eval(x)",
        "import subprocess\nsubprocess.run(['a'])",
        "from omegaconf import DictConfig\nDictConfig({})",
        "import importlib\nimportlib.import_module('a')",
    ],
)
def test_it_bites(text: str) -> None:
    assert list(calls(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "open('a', 'w')", "open('a', 'xb')", "from pathlib import Path\nPath('a').open('wb')", "def f(json): return 1",
        "def opened(): pass\nopened()",
        "import json\njson.dumps(1)", "import torch\ntorch.save(1, 'a')", "import tarfile\ntarfile.open('a', 'w')",
    ],
)  # fmt: skip
def test_it_lets_writers_be(text: str) -> None:
    assert not list(calls(ast.parse(text)))
