"""References in text: `quote`, `quote:mid`, `quote@2:mid`, and `origin=airport:delay`."""

import re
from dataclasses import dataclass
from typing import Any, Final

from featurestore.core.arguments import refuse
from featurestore.core.names import check_feature_name, check_name
from featurestore.errors import DefinitionError, LeakageError

_REF: Final = re.compile(
    r"(?:(?P<alias>[^=:@]+)=)?(?P<name>[^=:@]+)(?:@(?P<version>[1-9]\d{0,8}))?(?::(?P<feature>.+))?"
)


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """A definition, or one of its features, at a version or at the newest.

    Attributes:
        name: The definition's name.
        version: Its version; `None` means the newest at the time of `apply`.
        feature: One feature of it; `None` means all, in their order.
        alias: The name under which the same view is joined a second time (see `TrainingSet.key_map`).
    """

    name: str
    version: int | None = None
    feature: str | None = None
    alias: str | None = None

    def __str__(self) -> str:
        alias = f"{self.alias}=" if self.alias else ""
        version = f"@{self.version}" if self.version else ""
        feature = f":{self.feature}" if self.feature else ""
        return f"{alias}{self.name}{version}{feature}"

    def whole(self) -> "Ref":
        """Return the reference to the definition itself, without feature and alias."""
        return Ref(self.name, self.version)


def parse_ref(text: object) -> Ref:
    """Read `[alias=]name[@version][:feature]`.

    Raises:
        DefinitionError: the text is not a reference, or one of its names is not allowed.
    """
    match = _REF.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise DefinitionError(
            f"{text!r} is not a reference",
            hint='write "view", "view:feature", "view@2:feature" or "alias=view:feature"',
            ref=text,
        )
    version = match["version"]
    if match["alias"] is not None:
        check_name(match["alias"], "alias")
    if match["feature"] is not None:
        check_feature_name(match["feature"], "feature")
    return Ref(
        check_name(match["name"], "referenced"),
        int(version) if version else None,
        match["feature"],
        match["alias"],
    )


def reference(what: str, field: str, value: Any, kinds: tuple[type[Any], ...]) -> Ref:
    """Return the reference to a definition that is given as an object or as text.

    Raises:
        DefinitionError: a definition of another kind, anything else, or text that is no reference.
        LeakageError: a label, where none is meant.
    """
    if isinstance(value, kinds):
        return Ref(value.name)
    if getattr(value, "kind", None) == "label":
        raise LeakageError(
            f"{what} has {field}={value!r}, whose value lies after its reader's time",
            hint="labels go into the labels=[…] of a training set, and nowhere else",
        )
    if not isinstance(value, str):
        names = " or ".join(kind.kind.replace("_", " ") for kind in kinds)
        refuse(what, field, value, f"give a {names}, or its name")
    return parse_ref(value)
