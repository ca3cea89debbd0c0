"""What is made of a config before anything is read or written: options, mesh, base and model that fit together."""

import dataclasses
from collections.abc import Sequence

import jax
import ml_collections
from etils import epath
from jax.sharding import Mesh

from sft_jax.agreement import agreed
from sft_jax.models.decoder import Decoder
from sft_jax.options import Options, options_of
from sft_jax.runs import workdir as workdirs
from sft_jax.runs.base import Base, base_of
from sft_jax.runs.precision import with_dtypes
from sft_jax.sharding import make_mesh, platform_of
from sft_jax.training.branch import Branch, open_branch
from sft_jax.training.checks import check_config
from sft_jax.training.initial_adapter import InitialAdapter, open_initial_adapter
from sft_jax.training.setup import make_model, open_teacher, step_settings
from sft_jax.training.step import StepSettings
from sft_jax.training.step_memory import common_device_bytes
from sft_jax.training.teacher import Teacher, is_in_step
from sft_jax.training.trained_parameters import check_trained


@dataclasses.dataclass(frozen=True)
class CheckedRun:
    """A config whose parts fit together.

    Attributes:
        config: as it was given, with dtypes in the place of `auto`, what an adapter to begin with brings, and the date
            that templates are told.
        options: the same, as dataclasses.
        devices: of the run.
        mesh: of these devices.
        settings: what is static in its step.
        base: the model to start from.
        initial: the adapter to begin with; None for a fresh one, or for none.
        model: the decoder, for training.
        branch: the checkpoint of another run to begin with; None for a run from its base, or one that goes on.
        teacher: the model that is imitated; None for a run without one.
    """

    config: ml_collections.ConfigDict
    options: Options
    devices: Sequence[jax.Device]
    mesh: Mesh
    settings: StepSettings
    base: Base
    initial: InitialAdapter | None
    model: Decoder
    branch: Branch | None = None
    teacher: Teacher | None = None

    @property
    def teacher_in_step(self) -> Decoder | None:
        """The teacher's decoder, where its weights are in the step."""
        return self.teacher.model if self.teacher is not None and is_in_step(self.options) else None


def check_run(
    config: ml_collections.ConfigDict, workdir: epath.Path, devices: Sequence[jax.Device], base: Base | None
) -> CheckedRun:
    """Checks that flags, mesh, base and model fit together; nothing is written, and no weights are read.

    Args:
        config: of the run.
        workdir: its directory, whose date it takes over; or, before there is one, that of the run it branches off from.
        devices: to train on.
        base: what `base_of` made of the same `model` options; None: it is opened.

    Raises:
        ValueError: they do not; names the flag.
    """
    memory = common_device_bytes(devices)
    with agreed():  # what one process refuses, all refuse
        check_config(config)
        mesh = make_mesh(options_of(config).mesh, devices)
        branch = open_branch(options_of(config), workdir)
        there = workdir if branch is None or workdirs.config_there(workdir) else branch.directory
        config = with_dtypes(config, platform_of(mesh), workdirs.config_there(there))
        options = options_of(config)
        settings = step_settings(options, mesh)
        base = base_of(options.model) if base is None else base
        initial = open_initial_adapter(options.adapter, base)
        if initial is not None:  # it brings options of its own
            config = initial.in_config(config)
            options = options_of(config)
        teacher = open_teacher(options, base, mesh)
        if teacher is not None:
            settings = step_settings(options, mesh, teacher.model)
        in_step = teacher.model if teacher is not None and is_in_step(options) else None
        model = make_model(options, base.decoder, mesh, base.new_token_ids, memory=memory, teacher=in_step)
        check_trained(options, base.decoder)
    config = workdirs.with_date(there, config)
    if branch is not None:
        with agreed():
            branch.check_config(config)
    return CheckedRun(config, options_of(config), devices, mesh, settings, base, initial, model, branch, teacher)
