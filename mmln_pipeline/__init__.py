"""Brain MRI registration with the multi-strategy mutual learning network (MMLN)."""

# Bound here so that the name is always the function, also once the module of that name has been
# imported. That module is light: numerical libraries load with the first registration.
from mmln_pipeline.registration.api import QualityWarning, RegistrationResult, TopologyError, register

__version__ = "0.1.0"

__all__ = ["QualityWarning", "RegistrationResult", "TopologyError", "__version__", "register"]
