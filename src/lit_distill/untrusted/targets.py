"""The allow-list itself: which names an untrusted config may build from, and with which arguments."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torchvision.transforms import v2


@dataclass(frozen=True)
class Rule:
    """The arguments that an admitted target may be given.

    Attributes:
        arguments: their names; None for any.
        texts: those that may be text; None for all.
        patterns: what the text of an argument must match in full; it holds no ``..`` and no ``__``.
        written: those that name a file or folder to write, which lies in the run folder.
        existing: those that name a folder which must be there.
        parts: what an argument must be built of, by its name: copied without end, another would take all memory.
        numbers: the least and the largest number in an argument, by its name; those of ``""`` are for all others.
        positional: whether ``_args_`` are taken.
    """

    arguments: frozenset[str] | None = None
    texts: frozenset[str] | None = None
    patterns: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    written: frozenset[str] = frozenset()
    existing: frozenset[str] = frozenset()
    parts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    numbers: Mapping[str, tuple[float, float]] = field(default_factory=lambda: MappingProxyType({}))
    positional: bool = False


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILE = r"[\w.=+-][\w.=+ -]*"  # one component of a path
_CHECKPOINT = r"[\w.=+{}:/ -]*"  # with fields such as {epoch:02d}; val/top1 is a metric, so slashes are in it
_FIELDS = r"[\w.+ -]*(?:\{:0?\d{0,2}d?\})?[\w.+ -]*"  # img_{:05}.jpg
# In our own callbacks and loggers these arguments name places.
_PLACES = _names(
    "cache_dir cache_folder dirpath dir directory file filepath filename_prefix folder index log_dir log_file "
    "output output_dir path quarantine record report root root_dir run_dir save_dir target"
)

_PLAIN = Rule()
_LAYER = Rule(positional=True)
_RECURRENT = Rule(numbers={"num_layers": (1, 64)}, positional=True)  # torch looks for each tensor in a list of all
TRANSFORMS = "torchvision.transforms.v2"
MAX_TRANSFORMS = 32
# Pixels, so that no side of an image is scaled to 1024 whose other side is much longer.
_TRANSFORM = Rule(numbers={"": (-1024, 1024), "size": (16, 1024)}, positional=True)
# Their further arguments go to other libraries: timm's checkpoint_path would be unpickled by an old release.
_NETWORK_BY_NAME = Rule(
    arguments=_names(
        "name num_classes pretrained reset_head "
        "act_layer aa_layer attn_drop_rate aux_logits block_size class_token depth depths dims drop_block_rate "
        "drop_path_rate drop_rate dropout dynamic_img_size embed_dim global_pool head_init_scale image_size img_size "
        "in_chans init_values init_weights ls_init_value mlp_ratio norm_layer num_heads output_stride patch_size "
        "pool_size proj_drop_rate qkv_bias reg_tokens representation_size stem_type stem_width stochastic_depth_prob "
        "transform_input width_mult window_size zero_init_last zero_init_residual"
    ),
    texts=_names("pretrained act_layer aa_layer norm_layer global_pool stem_type"),
    patterns={"name": r"[\w.-]+"},
    numbers={"depth": (1, 256), "depths": (0, 256)},  # timm makes a list of floats of their sum, before any layer
)
# cache_dir gets files of names of their own, as MovingDigits' root does: in a folder that is there.
_DATA = Rule(patterns={"suffix": _FIELDS}, existing=_names("cache_dir"))

_TRAINER = Rule(
    arguments=_names(
        "accelerator strategy devices num_nodes precision logger callbacks fast_dev_run max_epochs min_epochs "
        "max_steps min_steps max_time limit_train_batches limit_val_batches limit_test_batches limit_predict_batches "
        "overfit_batches val_check_interval check_val_every_n_epoch num_sanity_val_steps log_every_n_steps "
        "enable_checkpointing enable_progress_bar enable_model_summary accumulate_grad_batches gradient_clip_val "
        "gradient_clip_algorithm deterministic benchmark inference_mode use_distributed_sampler detect_anomaly "
        "barebones plugins sync_batchnorm reload_dataloaders_every_n_epochs default_root_dir"
    ),
    texts=_names("accelerator devices precision max_time val_check_interval gradient_clip_algorithm deterministic"),
    patterns={"strategy": r"auto|(?:ddp|fsdp)[a-z_]*"},
    written=_names("default_root_dir"),
)
_MODEL_CHECKPOINT = Rule(
    arguments=_names(
        "dirpath filename monitor verbose save_last save_top_k save_on_exception save_weights_only mode "
        "auto_insert_metric_name every_n_train_steps every_n_epochs save_on_train_epoch_end enable_version_counter"
    ),
    patterns={"filename": _CHECKPOINT},
    written=_names("dirpath"),
)

_EXACT: Mapping[str, Rule] = MappingProxyType(
    {
        "lightning.Trainer": _TRAINER,
        "lightning.pytorch.Trainer": _TRAINER,
        "lightning.pytorch.callbacks.ModelCheckpoint": _MODEL_CHECKPOINT,
        "lightning.pytorch.callbacks.EarlyStopping": _PLAIN,
        "lightning.pytorch.callbacks.LearningRateMonitor": _PLAIN,
        "lightning.pytorch.callbacks.GradientAccumulationScheduler": _PLAIN,
        "lightning.pytorch.callbacks.DeviceStatsMonitor": _PLAIN,
        "lightning.pytorch.callbacks.Timer": _PLAIN,
        "lightning.pytorch.callbacks.TQDMProgressBar": _PLAIN,
        "lightning.pytorch.callbacks.RichProgressBar": Rule(arguments=_names("refresh_rate leave")),
        "lightning.pytorch.callbacks.ModelSummary": Rule(arguments=_names("max_depth")),
        "lightning.pytorch.callbacks.RichModelSummary": Rule(arguments=_names("max_depth")),
        "lightning.pytorch.callbacks.StochasticWeightAveraging": Rule(
            arguments=_names("swa_lrs swa_epoch_start annealing_epochs annealing_strategy device")
        ),
        "lightning.pytorch.callbacks.EMAWeightAveraging": Rule(
            arguments=_names(
                "device use_buffers decay update_every_n_steps update_starting_at_step update_starting_at_epoch"
            )
        ),
        "lightning.pytorch.loggers.TensorBoardLogger": Rule(
            arguments=_names("save_dir name version default_hp_metric prefix"),
            patterns={"name": f"(?:{_FILE})?", "version": f"(?:{_FILE})?", "prefix": f"(?:{_FILE})?"},
            written=_names("save_dir"),
        ),
        "lightning.pytorch.loggers.CSVLogger": Rule(
            arguments=_names("save_dir name version prefix flush_logs_every_n_steps"),
            patterns={"name": f"(?:{_FILE})?", "version": f"(?:{_FILE})?", "prefix": f"(?:{_FILE})?"},
            written=_names("save_dir"),
        ),
        "lit_distill.LossTerm": _PLAIN,
        "lit_distill.composer.LossTerm": _PLAIN,
        "lit_distill.data.ClipTransform": _PLAIN,
        "lit_distill.data.CutMix": _PLAIN,
        "lit_distill.data.DigitsImages": Rule(existing=_names("root")),
        "lit_distill.data.FrameSampling": _PLAIN,
        "lit_distill.data.ImageFolderDataModule": _DATA,
        "lit_distill.data.InputView": _PLAIN,
        "lit_distill.data.Mixup": _PLAIN,
        "lit_distill.data.MovingDigits": Rule(patterns=_DATA.patterns, existing=_names("cache_dir root")),
        "lit_distill.data.VideoDataModule": _DATA,
        "lit_distill.data.VideoMix": _PLAIN,
        "lit_distill.models.Ensemble": Rule(texts=_names("mode")),
        "lit_distill.models.ImageGenerator": Rule(numbers={"": (1, 4096)}),
        "lit_distill.models.PPTSMResNet": _PLAIN,
        "lit_distill.models.PPTSMv2": _PLAIN,
        "lit_distill.models.SimKDStudent": _PLAIN,
        "lit_distill.models.SmallResNet": _PLAIN,
        "lit_distill.models.timm_model": _NETWORK_BY_NAME,
        "lit_distill.models.torchvision_model": _NETWORK_BY_NAME,
        "lit_distill.optim.paddle_momentum": _PLAIN,
        "lit_distill.terms.LossTerm": _PLAIN,
        **{f"torch.nn.{name}": _RECURRENT for name in ("GRU", "LSTM", "RNN", "RNNBase")},
        "torch.nn.Transformer": Rule(numbers={"num_encoder_layers": (0, 256), "num_decoder_layers": (0, 256)}),
        "torch.nn.TransformerDecoder": Rule(
            parts={"decoder_layer": "torch.nn.TransformerDecoderLayer"}, numbers={"num_layers": (1, 256)}
        ),
        "torch.nn.TransformerEncoder": Rule(
            parts={"encoder_layer": "torch.nn.TransformerEncoderLayer"}, numbers={"num_layers": (1, 256)}
        ),
        "torchvision.transforms.v2.Pad": Rule(numbers={"": (-1024, 1024), "padding": (0, 16)}),
        "torchvision.transforms.v2.RandomRotation": Rule(arguments=_names("degrees interpolation center fill")),
    }
)

# Public classes of these modules that are of that kind, which may be named as the module does: this room stands below
# them. What a class only imports or inherits from is not public.
_KINDS: Mapping[str, tuple[type | str, Rule]] = MappingProxyType(
    {
        "lit_distill.balance": ("Balancer", _PLAIN),
        "lit_distill.callbacks": (Callback, Rule(written=_PLACES)),
        "lit_distill.checkpoints": (CheckpointIO, Rule(written=_PLACES)),
        "lit_distill.loggers": (Logger, Rule(written=_PLACES)),
        "lit_distill.losses": (nn.Module, _PLAIN),
        "lit_distill.schedules": ("Schedule", _PLAIN),
        "torch.nn": (nn.Module, _LAYER),
        "torch.optim": (torch.optim.Optimizer, _PLAIN),
        "torch.optim.lr_scheduler": (LRScheduler, _PLAIN),
        TRANSFORMS: (nn.Module, _TRANSFORM),
    }
)
# They call what they are given, are no layers, or enlarge an image by a factor.
_NOT = frozenset(
    {
        nn.Module, torch.optim.lr_scheduler.LambdaLR, torch.optim.lr_scheduler.MultiplicativeLR, v2.Lambda,
        v2.RandomZoomOut, v2.ScaleJitter,
    }
)  # fmt: skip


def rule_of(target: str) -> Rule | None:
    """The rule for an admitted name; None for any other. Nothing is imported by a name that a config holds."""
    if target in _EXACT:
        return _EXACT[target]
    package, _, name = target.rpartition(".")
    if package not in _KINDS or name.startswith("_"):
        return None
    named, rule = _KINDS[package]
    module = importlib.import_module(package)
    kind: type = getattr(module, named) if isinstance(named, str) else named
    found = getattr(module, name, None)
    if not isinstance(found, type) or not issubclass(found, kind) or found is kind or found in _NOT:
        return None
    home = "torch.nn.modules" if package == "torch.nn" else package.partition(".")[0]  # none of torch.nn.parallel
    return rule if found.__module__.startswith(f"{home}.") else None
