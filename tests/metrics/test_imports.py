import pkgutil
import subprocess
import sys

import fiber.metrics


def test_metrics_load_without_torch():
    modules = pkgutil.iter_modules(fiber.metrics.__path__)
    names = [f"fiber.metrics.{module.name}" for module in modules]
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
