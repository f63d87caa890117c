"""Several platforms with the catalogue that they share: what a data folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.errors import DataError

if TYPE_CHECKING:
    from common.data.catalogue import Catalogue
    from common.data.schema import PlatformTable


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Marketplace:
    """Several platforms and the catalogue that they share.

    Raises:
        DataError: if there is no platform, two have one name, or one lists nothing in the
            catalogue.
    """

    platforms: tuple[PlatformTable, ...]
    catalogue: Catalogue
    source: str
    is_synthetic: bool = False

    def __post_init__(self) -> None:
        names = [platform.name for platform in self.platforms]
        if not names or len(set(names)) < len(names):
            raise DataError(
                "the platforms need different names" if names else "there is no platform",
                source=self.source,
                found=", ".join(names) or "nothing",
                expected="at least one platform, each with a name of its own",
            )
        for name in names:
            if name not in self.catalogue.listings:
                raise DataError(
                    f"the catalogue lists nothing for platform {name!r}",
                    source=self.source,
                    found=f"listings of {', '.join(self.catalogue.listings)}",
                    expected="at least one listed item per platform",
                )

    def platform(self, name: str) -> PlatformTable:
        """The platform called ``name``.

        Raises:
            KeyError: if there is none.
        """
        for platform in self.platforms:
            if platform.name == name:
                return platform
        raise KeyError(name)
