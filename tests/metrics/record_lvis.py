"""Record what the `lvis` package computes for a small drawn case: `lvis_recorded.json`.

Command, in an environment of its own, since the package needs an old numpy:

    pip install "numpy<1.24" "pycocotools<2.0.8" && pip install --no-deps lvis==0.5.3
    python tests/metrics/record_lvis.py

The file holds the annotations and detections as LVIS writes them, and the package's numbers. Only
its drawing needs OpenCV and matplotlib, which are replaced by empty modules.
"""

import json
import sys
import tempfile
import types
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("lvis_recorded.json")
PICTURES, CLASSES, DETECTIONS = 12, 6, 16
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


def draw(seed: int) -> tuple[dict, list[dict]]:
    """Draw annotations with what is absent and not exhaustive, and detections with equal scores."""
    random = np.random.RandomState(seed)
    images, annotations, results = [], [], []
    for image in range(1, PICTURES + 1):
        count = random.randint(0, 7)
        scale = random.choice([1, 4])
        boxes = np.concatenate(
            [random.uniform(0, 60, (count, 2)), random.uniform(5, 40, (count, 2))], axis=1
        )
        boxes = (boxes * scale).round(2)
        labels = random.randint(1, CLASSES + 1, count)
        there = set(labels.tolist())
        draws = random.uniform(size=CLASSES)
        absent = [c for c in range(1, CLASSES + 1) if c not in there and draws[c - 1] < 0.5]
        incomplete = [c for c in sorted(there) if draws[c - 1] < 0.3]
        images.append(
            {"id": image, "width": 640, "height": 480, "neg_category_ids": absent}
            | {"not_exhaustive_category_ids": incomplete}
        )
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            area = round(box[2] * box[3] * random.uniform(0.4, 1), 2)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": label}
                | {"bbox": box, "area": area, "segmentation": [[0, 0, 1, 0, 1, 1]]}
            )
        for _ in range(DETECTIONS):
            box = np.concatenate([random.uniform(0, 60, 2), random.uniform(5, 40, 2)]) * scale
            label = int(random.randint(1, CLASSES + 1))
            if count and random.uniform() < 0.6:
                near = random.randint(count)
                box, label = boxes[near] + random.normal(0, 2 * scale, 4), int(labels[near])
            box = np.concatenate([box[:2], np.maximum(box[2:], 1)]).round(2).tolist()
            results.append(
                {"image_id": image, "category_id": label, "bbox": box}
                | {"score": random.randint(1, 12) / 16}
            )
    categories = [
        {"id": number, "name": str(number), "frequency": "rcf"[number % 3]}
        for number in range(1, CLASSES + 1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def main() -> None:
    """Run the package, and write the case with its numbers."""
    for name in ("cv2", "matplotlib", "matplotlib.pyplot", "matplotlib.patches"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["matplotlib"].pyplot = sys.modules["matplotlib.pyplot"]
    sys.modules["matplotlib.patches"].Polygon = object
    from lvis.eval import LVISEval
    from lvis.lvis import LVIS
    from lvis.results import LVISResults

    truth, results = draw(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "truth.json"
        path.write_text(json.dumps(truth))
        own = LVIS(str(path))
        evaluation = LVISEval(own, LVISResults(own, list(results), max_dets=-1), "bbox")
        evaluation.params.max_dets = -1
        evaluation.run()
    numbers = {name: float(evaluation.get_results()[name]) for name in NAMES}
    fields = ("image_id", "category_id", "bbox", "score")
    kept = [{name: entry[name] for name in fields} for entry in results]
    FILE.write_text(json.dumps({"truth": truth, "results": kept, "numbers": numbers}) + "\n")
    print(numbers)


if __name__ == "__main__":
    main()
