"""A compiled function of the package with a recipe for its arguments.

The recipe is traced where the function is compiled for devices that are not here, so that nothing
need exist, and run where it runs.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from atod_jax.estimate.text import amount
from atod_jax.estimate.work import Work
from atod_jax.models import AXES, LanguageModel
from atod_jax.models.loading import to_integers
from atod_jax.results.tables import padded_table
from atod_jax.sharding import Layout, param_shardings

NOTHING: Mapping[str, Any] = {}


class TooLarge(ValueError):
    """A TPU's compiler makes no program that does not fit, but says what it would need."""

    def __init__(self, name: str, temporary: int):
        super().__init__(f"{name} does not fit: {amount(temporary)} of temporaries")
        self.temporary = temporary


class Program(NamedTuple):
    """A compiled function with the arguments it is called with."""

    name: str
    run: Any  # jitted
    make: Callable[[], tuple]  # its arguments; traced, so none of them need exist
    places: tuple  # shardings, a prefix of the arguments
    mesh: Mesh
    work: Work
    options: Mapping[str, Any] = NOTHING  # static arguments
    steps: int = 0  # of an open loop; `work` is that of one then
    replaced: int | None = None  # the argument that is donated; the first result takes its place
    resident: slice = slice(0)  # arguments that are there for the whole run

    def shapes(self) -> tuple:
        """The arguments as shapes with their shardings."""
        with jax.set_mesh(self.mesh):
            return jax.tree.map(_placed, self.places, jax.eval_shape(self.make))

    def compile(self) -> Any:
        """The program compiled for the devices of its shardings.

        Raises:
          TooLarge: the compiler has given up.
        """
        shapes = self.shapes()
        try:
            with jax.set_mesh(self.mesh):
                return self.run.lower(*shapes, **self.options).compile()
        except jax.errors.JaxRuntimeError as error:
            needed = re.search(r"RESOURCE_EXHAUSTED.*?([\d.]+)([KMGT])", str(error), re.DOTALL)
            if needed is None:
                raise
            unit = 1024 ** (1 + "KMGT".index(needed[2]))
            raise TooLarge(self.name, round(float(needed[1]) * unit)) from error

    def arguments(self) -> list:
        """Arguments that exist, on the devices of its shardings."""
        with jax.set_mesh(self.mesh):
            return list(jax.jit(self.make, out_shardings=self.places)())

    @property
    def given(self) -> int:
        """Bytes of a device that the program is given and that stay for the whole run."""
        return size(self.shapes()[self.resident])


def size(shapes: Any) -> int:
    """Bytes of some arrays on one device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(shapes)
    )


def placement(program: Program) -> str:
    """Where every array lies that the program is given."""
    rows = []
    for path, x in jax.tree_util.tree_leaves_with_path(program.shapes()):
        axes = ", ".join(str(axis or "-") for axis in x.sharding.spec)
        shape, local = (" x ".join(map(str, s)) for s in (x.shape, x.sharding.shard_shape(x.shape)))
        rows.append((jax.tree_util.keystr(path, simple=True, separator="/"), shape, axes, local))
    return padded_table(("argument", "shape", "mesh axes", "on a device"), rows)


def _placed(place: Any, shapes: Any) -> Any:
    """Shapes with their shardings; one sharding may stand for a whole tree."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)


# ------------------------------------------------------------------- weights


def stored(model: LanguageModel, dtype: str = "float32") -> Any:
    """Random weights of a type; "int8": as a teacher of that type is kept."""
    if dtype == "int8":
        return to_integers(model.config, stored(model, "bfloat16"))
    return jax.tree.map(lambda x: x.astype(dtype), model.init(random_key()))


def param_places(model: LanguageModel, layout: Layout) -> Any:
    """Where the weights of a model lie that trains."""
    params = jax.eval_shape(lambda: stored(model))
    return model.join(*(part and tree_places(part, layout) for part in model.split(params)))


def frozen(model: LanguageModel, dtype: str) -> Any:
    """Random weights as `run.models.load_teacher` keeps those of a teacher."""
    return model.serve(stored(model, dtype))


def frozen_places(model: LanguageModel, layout: Layout, dtype: str) -> Any:
    """Where they lie."""
    with jax.set_mesh(layout.mesh):
        return tree_places(jax.eval_shape(lambda: frozen(model, dtype)), layout)


def serving_places(model: LanguageModel, layout: Layout) -> Any:
    """Where the weights lie with which a model plays: where the compiler puts them."""
    if layout.mesh.size == 1:
        return whole(layout)
    with jax.set_mesh(layout.mesh):
        params = jax.tree.map(
            _placed, param_places(model, layout), jax.eval_shape(lambda: stored(model))
        )
        return jax.jit(model.serve).lower(params).compile().output_shardings


def tree_places(params: Any, layout: Layout) -> Any:
    """Where the arrays of a tree lie that has the names of parameters."""
    return param_shardings(params, AXES, layout.rules, mesh=layout.mesh)


def whole(layout: Layout) -> Any:
    """On every device."""
    return NamedSharding(layout.mesh, PartitionSpec())


def random_key() -> jax.Array:
    """Always the same."""
    return jax.random.key(0)
