"""Whether this machine can confine a program at all, for tests that run one."""

import pytest

from poad.envs.datasci.confinement import Missing, package_paths, seccomp_filter

try:
    package_paths()
    seccomp_filter()
except Missing as error:
    WHY_NOT = str(error)
else:
    WHY_NOT = ""

needs_sandbox = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "a sandbox works here")
