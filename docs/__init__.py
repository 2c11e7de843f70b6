"""The documentation's sources; `python -m docs` builds the site. No part of the package."""
