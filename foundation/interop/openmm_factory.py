"""Entry point of OpenMM's openmmml, which loads it while it is imported itself: so nothing of it is imported here."""

from typing import Any

from foundation.interop.calculator import Calculator


class FoundationFactory:
    """Factory of potentials in the form of openmmml, which asks for this one method."""

    def createImpl(self, name: str, *, model: str, **options: Any) -> Any:
        """Return a potential by its name, folder or run; the options are those of `foundation.Calculator`.

        Raises:
            FileNotFoundError: the word names no potential.
            ValueError: an option cannot be used.
        """
        from foundation.interop.openmm_potential import FoundationPotential

        return FoundationPotential(name, Calculator(model, **options))
