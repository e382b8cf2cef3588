"""For the API page: the callback's parameters are those of its `Options`."""

from typing import Any

import griffe

_BY_POSITION = ("epsilon", "delta")


def _default(value: Any) -> Any:
    """The default alone, of a field that says more of itself."""
    if isinstance(value, griffe.ExprCall):
        for argument in value.arguments:
            if getattr(argument, "name", None) == "default":
                return argument.value
    return value


class ParametersOfOptions(griffe.Extension):
    """What ``with_parameters_of`` does at run time, for readers of the source."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Take the fields of `Options` for parameters, once the package is loaded."""
        if pkg.name != "lightning_unlearn":
            return
        kinds = griffe.ParameterKind
        fields = pkg["plugin.options.Options"].attributes.items()
        init = pkg["plugin.callback.UnlearningCallback.__init__"]
        init.parameters = griffe.Parameters(
            griffe.Parameter("self", kind=kinds.positional_or_keyword),
            *(
                griffe.Parameter(
                    name,
                    annotation=field.annotation,
                    default=_default(field.value),
                    kind=kinds.positional_or_keyword
                    if name in _BY_POSITION
                    else kinds.keyword_only,
                )
                for name, field in fields
                if field.value is not None and not name.startswith("_")
            ),
        )
