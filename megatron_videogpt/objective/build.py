"""An objective's parts, from the modules of its package with these names:

    options    its section and rules (`config.sections.enter`), imported at start; differences(there, here) -> list[str]
               where the weights of a run can mean something else in another
    work       work_of(config, codec) -> ObjectiveWork, its closed forms
    parameters TABLE, the parameters of its network, or table(config) where they depend on more than its sizes
    objective  build(config) -> Objective
    ends       ENDS, what stands around the decoder (`model.videogpt.Ends`), or ends(config)
    parts      parts(config) -> tuple[Part, ...]; absent where one network, of `ends`, is all there is
    released   how published files of its networks look, for `convert.mapped` (`released.Released`); absent where they
               are not exchanged, or in the layout of Video-GPT.  Of an objective with several networks
               (`objective.network`) it lies in the package of that network's name in the objective's
    sampler    build_sampler(chunks, config, device) -> Sampler; absent where it has none

Nothing else imports the package of an objective by its name.  PyTorch is imported only where an objective or its
network is built: `check` asks for its work alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..codec.geometry import Geometry
from ..config.schema import Config
from ..config.sections import find, names
from ..errors import UserError
from ..model.parameters import Table, prefixed
from .work import ObjectiveWork

if TYPE_CHECKING:
    import torch

    from ..model.videogpt import VideoGPT
    from ..platforms import Platform
    from .base import Objective, Part, Sampler
    from .released import Released


def module_of(config: Config, name: str) -> ModuleType:
    """A module of the configured objective's package."""
    return importlib.import_module(f"{find('objective', config.objective.name).package}.{name}")


def build_objective(config: Config) -> Objective:
    """The objective that `objective.name` names."""
    objective: Objective = module_of(config, "objective").build(config)
    return objective


def work_of(config: Config, codec: Geometry) -> ObjectiveWork:
    """The closed forms of the objective that `objective.name` names."""
    work: ObjectiveWork = module_of(config, "work").work_of(config, codec)
    return work


def parameter_table(config: Config) -> Table:
    """The parameters of the network that the objective trains."""
    table: Table = _made_for(config, "parameters", "table")
    return prefixed(table, config.condition)


def build_network(config: Config, channels: int, platform: Platform, backend: str, chunk: int = 0) -> VideoGPT:
    """One chunk of this pipeline rank's stage of the network that the objective trains.  Parameters have no values yet.

    channels: latent channels of the codec; backend: attention backend, resolved; chunk: which virtual stage of this
    rank.
    """
    # megatron-core looks for its device as it is imported, and objectives are looked at without one, too.
    from ..model.videogpt import VideoGPT

    return VideoGPT(config, channels, platform, backend, _made_for(config, "ends", "ends"), chunk)


def differences(there: Config, here: Config) -> list[str]:
    """Why weights that were trained with one configuration mean something else with the other, as far as their
    objective knows.
    """
    module = module_of(here, "options")
    if there.objective.name != here.objective.name or not hasattr(module, "differences"):
        return []
    found: list[str] = module.differences(there, here)
    return found


def parts_of(config: Config) -> tuple[Part, ...]:
    """The networks of the configured objective, the one that is sampled first."""
    from .base import Part

    if not _has(config, "parts"):
        return (Part("model", build_network),)
    parts: tuple[Part, ...] = module_of(config, "parts").parts(config)
    return parts


def has_sampler(config: Config) -> bool:
    """Whether the configured objective can generate."""
    return _has(config, "sampler")


def require_sampler(config: Config) -> None:
    """UserError, one line, where it cannot."""
    if not has_sampler(config):
        raise UserError(f"objective.name = {config.objective.name}: has no sampler, so it cannot generate anything")


def _made_for(config: Config, module: str, name: str) -> Any:
    """What a function of the objective's package makes of the run's options, or its constant of that name."""
    found = module_of(config, module)
    return getattr(found, name)(config) if hasattr(found, name) else getattr(found, name.upper())


def _has(config: Config, name: str) -> bool:
    return _in_package(find("objective", config.objective.name).package, name)


def _in_package(package: str, name: str) -> bool:
    return importlib.util.find_spec(f"{package}.{name}") is not None


def released_modules() -> dict[tuple[str, str], Released]:
    """The modules `released` of all objectives that have one, by the objective's name and that of the network, "" where
    it has one alone.
    """
    found: dict[tuple[str, str], Any] = {}
    for name in names("objective"):
        package = importlib.import_module(find("objective", name).package)
        inner = [item.name for item in pkgutil.iter_modules(package.__path__) if item.ispkg]
        for network in ("", *sorted(inner)):
            place = f"{package.__name__}.{network}".rstrip(".")
            if _in_package(place, "released"):
                found[name, network] = importlib.import_module(f"{place}.released")
    return found


def released_of(config: Config) -> Released | None:
    """The module `released` of a run's network, None where there is none."""
    return released_modules().get((config.objective.name, getattr(config.objective, "network", "")))


def build_sampler(chunks: list[Any], config: Config, device: torch.device) -> Sampler:
    """The model as what continues videos, with its memory of them as `config.sample` has it.

    Every rank of a model parallel group must use its sampler in the same way.  Raises UserError for an objective that
    cannot generate.
    """
    require_sampler(config)
    sampler: Sampler = module_of(config, "sampler").build_sampler(chunks, config, device)
    return sampler


build_denoiser = build_sampler
"""The same: validation's name for it."""
