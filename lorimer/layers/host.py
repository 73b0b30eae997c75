"""The host: an adapted layer is the same module object with its class swapped.

`AdaptedLinear(CalledHost, Linear)` is made on the fly from whatever class the layer had, so names in the
state dict, `isinstance`, tied weights and everything else about the layer stay as they were; swapping
the class back leaves nothing. One host serves every method and every layer type:

    CalledHost    a layer whose forward is called: y' is computed beside the frozen layer, `.weight` is
                  the frozen weight
    ReadHost      a layer whose parameters somebody reads (`nn.MultiheadAttention`, an LSTM, experts, norms,
                  a subclass with a forward of its own): reading gives the adapted value, `disabled` or not
                  live the frozen one
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lorimer.errors import UsageError
from lorimer.layers.geometry import Geometry
from lorimer.layers.own_forward import become, fusible, runs_product
from lorimer.layers.recurrent import read_flat_weights, restore_flat_weights, write_flat_weights
from lorimer.layers.rows import Rows, mixed_output
from lorimer.layers.slots import AdapterSlots, LayerSlots, Live, fold, fold_bias
from lorimer.layers.statistics import held_training, keeps_statistics, own_class

if TYPE_CHECKING:
    from lorimer.layers.sites import Site

    _Layer = nn.Module  # a host is always mixed into a layer's class
else:
    _Layer = object

SLOTS = "lorimer"  # the one attribute a host adds to its layer
_STASH = "_lorimer_merged"  # where a merged layer keeps its slots: a plain attribute, in no list of torch's


class Host(_Layer):
    """What a layer's class gains when it is adapted."""

    adapted_class: type[nn.Module]  # the class the layer had before
    read_parameters: tuple[str, ...] = ()  # those that a ReadHost answers for
    plain_forward: bool = False  # see `fusible`
    lorimer: LayerSlots

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles (`torch.save` of a whole model) name the layer's own class, as ours has no
        place to be imported from."""
        reduced: Any = super().__reduce_ex__(protocol)
        _, _, *state = reduced
        return (_bare_host, (self.adapted_class, self.read_parameters), *state)

    def _replicate_for_data_parallel(self) -> Any:
        """What `nn.DataParallel` asks each module for. Its copies have no parameters, only attributes."""
        raise UsageError(
            "adapters do not act in the copies of nn.DataParallel; start one process for each device with "
            "torchrun or accelerate launch, or show the program one device (CUDA_VISIBLE_DEVICES=0)"
        )


class CalledHost(Host):
    """A layer whose forward is called."""

    def forward(self, input: Tensor, **options: Any) -> Tensor:  # named as in torch, for keyword callers
        slots = self.lorimer
        if slots.rows is not None:
            return _mixed_output(self, slots.rows, input, options)
        return _output(self, input, slots.live("weight"), slots.live("bias"), options)


class ReadHost(Host):
    """A layer whose parameters are read. Its class has a property for each adapted parameter."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's own forward, with each adapted value computed once."""
        slots = self.lorimer
        slots.folded = {name: folded_parameter(self, name) for name in self.read_parameters}
        try:
            return super().forward(*args, **kwargs)
        finally:
            slots.folded = {}


def _output(layer: Any, x: Tensor, weight_live: Live, bias_live: Live, options: dict[str, Any]) -> Tensor:
    """A called layer's output under these adapters of its weight and of its bias."""
    if not weight_live and not bias_live:
        output: Tensor = layer.adapted_class.forward(layer, x, **options)
        return output  # exactly the base layer
    base = layer.lorimer.parameters_slots()["weight"].geometry(layer)
    if not options and not bias_live:
        quick = _quick_output(x, weight_live, base)
        if quick is not None:
            return quick
    return base.apply(*_folded_parameters(layer, weight_live, bias_live), x, **options)


def _mixed_output(layer: Any, rows: Rows, x: Tensor, options: dict[str, Any]) -> Tensor:
    """A called layer's output for a batch whose rows name their adapters."""
    slots: LayerSlots = layer.lorimer
    base = slots.parameters_slots()["weight"].geometry(layer)

    def run(some: Tensor, name: str | None) -> Tensor:
        return _output(layer, some, slots.alone("weight", name), slots.alone("bias", name), options)

    acting = {name: one for name in rows.members for one in slots.alone("weight", name) if name is not None}
    at_once = not options and not any(slots.alone("bias", name) for name in rows.members)
    return mixed_output(rows, x, acting, base, run, at_once)


def _quick_output(x: Tensor, live: Live, base: Geometry) -> Tensor | None:
    """The layer's output by its adapters' quick paths; None where there is none to their combination."""
    (first, strength), *others = live
    if others and not all(adapter.method.additive for adapter, _ in live):
        return None
    output = first(x, base, strength)
    for adapter, factor in others:
        if output is not None:
            output = adapter.add(x, output, base, factor)
    return output


def folded_parameters(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a called layer with every live adapter folded in."""
    return _folded_parameters(layer, layer.lorimer.live("weight"), layer.lorimer.live("bias"))


def _folded_parameters(layer: Any, weight_live: Live, bias_live: Live) -> tuple[Tensor, Tensor | None]:
    slots = layer.lorimer.parameters_slots()
    weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
    if weight_live:
        base = slots["weight"].geometry(layer)
        weight, bias = fold(base.weight, weight_live, base), fold_bias(bias, weight_live)
    if bias is not None and bias_live:
        bias = fold(bias, bias_live, slots["bias"].geometry(layer, "bias"))
    return weight, bias


def folded_parameter(layer: Any, parameter: str) -> Tensor:
    """One parameter of any adapted layer with its live adapters folded in."""
    if _has_product(layer.lorimer) and parameter in ("weight", "bias"):
        weight, bias = folded_parameters(layer)
        return weight if parameter == "weight" else bias  # type: ignore[return-value]
    slots = layer.lorimer.parameters_slots()[parameter]
    geometry = slots.geometry(layer, parameter)
    return fold(geometry.weight, slots.live(), geometry)


def folded(layer: Any) -> dict[str, Tensor]:
    """Every parameter of an adapted layer that its live adapters change, with them folded in."""
    slots: LayerSlots = layer.lorimer
    if not _has_product(slots):
        return {name: folded_parameter(layer, name) for name in layer.read_parameters if slots.live(name)}
    weight, bias = folded_parameters(layer)
    found = {"weight": weight} if slots.live("weight") else {}
    if bias is not None and bias is not layer._parameters["bias"]:
        found["bias"] = bias
    return found


def make_host(site: Site) -> AdapterSlots:
    """Swap the layer's class for a host class that answers for the site; returns the site's slots."""
    layer = site.layer
    before = slots_of(layer)
    slots = LayerSlots() if before is None else before
    own = slots.add(site.parameter, site.geometry)
    cls = layer.adapted_class if isinstance(layer, Host) else own_class(layer)
    read = _read_parameters(layer, cls, slots)
    if before is None:
        layer.add_module(SLOTS, slots)
    become(layer, _host_class(cls, read))
    return own


def put_below_host(layer: nn.Module, cls: type[nn.Module]) -> None:
    """Give a layer another class of its own, under its adapters where it has some."""
    become(layer, _host_class(cls, layer.read_parameters) if isinstance(layer, Host) else cls)


def take_off(site: Site, name: str) -> None:
    """Remove an adapter from a site; with its last adapter the layer gets its own class back."""
    slots = slots_of(site.layer)
    own = slots.parameters_slots().get(site.parameter) if slots is not None else None
    if slots is None or own is None:
        return
    if name in own.names():
        own.remove(name)
    if own.names():
        return
    del slots._modules[site.parameter]
    if slots.parameters_slots():
        cls: Any = site.layer.adapted_class
        become(site.layer, _host_class(cls, _read_parameters(site.layer, cls, slots)))
    else:
        _unmake_host(site.layer)


def is_sharded(tensor: Any) -> bool:
    """Whether it is a `DTensor`, of which each process has a part."""
    return hasattr(tensor, "full_tensor")


def slots_of(layer: nn.Module) -> LayerSlots | None:
    """The layer's slots, whether it is live or merged; None where it is not adapted."""
    slots = layer._modules.get(SLOTS) if isinstance(layer, Host) else layer.__dict__.get(_STASH)
    return slots if isinstance(slots, LayerSlots) else None


def stash_host(layer: nn.Module) -> None:
    """Make the layer plain again but remember its slots, out of sight of parameters and state dict."""
    slots = slots_of(layer)
    _unmake_host(layer)
    layer.__dict__[_STASH] = slots


def forget_stash(layer: nn.Module) -> None:
    """Drop the slots of a merged layer for good."""
    del layer.__dict__[_STASH]


def unstash_host(layer: nn.Module) -> None:
    """The inverse of `stash_host`; adapters follow the parameters to their device."""
    slots: LayerSlots = layer.__dict__.pop(_STASH)
    cls = type(layer)
    become(layer, _host_class(cls, _read_parameters(layer, cls, slots)))
    layer.add_module(SLOTS, slots.to(next(layer.parameters(recurse=False)).device))


def _unmake_host(layer: nn.Module) -> None:
    """Give the layer its own class back and drop its slots."""
    assert isinstance(layer, Host)
    del layer._modules[SLOTS]
    become(layer, layer.adapted_class)
    restore_flat_weights(layer)


def _read_parameters(layer: nn.Module, cls: type[nn.Module], slots: LayerSlots) -> tuple[str, ...]:
    """The parameters that a layer, whose own class is `cls`, reads with adapters folded in; () where its
    forward is replaced."""
    every = slots.parameters_slots()
    if not _has_product(slots):
        return tuple(every)
    if runs_product(layer, cls, every["weight"].geometry):
        return ()
    return tuple(name for name in ("weight", "bias") if layer._parameters.get(name) is not None)


def _has_product(slots: LayerSlots) -> bool:
    """Whether adapters act on the weight of a product, and so perhaps on the bias that is added to it."""
    weight = slots.parameters_slots().get("weight")
    return weight is not None and weight.geometry.called


def _bare_host(cls: type[nn.Module], read_parameters: tuple[str, ...]) -> nn.Module:
    """A host of `cls` without its state, to be filled by whoever copies or unpickles."""
    host = _host_class(cls, read_parameters)
    bare: nn.Module = host.__new__(host)
    return bare


_host_classes: dict[tuple[type[nn.Module], tuple[str, ...]], Any] = {}


def _host_class(cls: type[nn.Module], read_parameters: tuple[str, ...]) -> Any:
    """The host class of `cls`, always the same one, so that equal layers stay of equal type."""
    key = (cls, read_parameters)
    if key not in _host_classes:
        members: dict[str, Any] = {
            "adapted_class": cls,
            "read_parameters": read_parameters,
            "plain_forward": fusible(cls),
            "__module__": __name__,
        }
        members.update({name: _read_property(name) for name in read_parameters})
        if keeps_statistics(cls):
            members["training"] = held_training()
        if issubclass(cls, nn.RNNBase):
            members["_flat_weights"] = property(read_flat_weights, write_flat_weights)
        kind = ReadHost if read_parameters else CalledHost
        _host_classes[key] = type(f"Adapted{cls.__name__}", (kind, cls), members)
    return _host_classes[key]


def _read_property(parameter: str) -> property:
    """What stands for `parameter` on a ReadHost: reading it gives the adapted value."""

    def read(layer: Any) -> Tensor | None:
        slots = layer._modules[SLOTS]
        if parameter in slots.folded:
            return slots.folded[parameter]
        own = layer._parameters[parameter]
        acting = slots.live(parameter) or (_has_product(slots) and slots.live("weight"))
        if not acting or is_sharded(own):  # only who shards it reads it outside the forward
            return own
        return folded_parameter(layer, parameter)

    def write(layer: Any, value: Any) -> None:
        layer._parameters[parameter] = value

    return property(read, write)
