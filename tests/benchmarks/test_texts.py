from fiber.benchmarks.texts import COCO_CLASSES, class_prompt, generate_boxes, generate_captions


def test_captions_are_deterministic_and_distinct():
    captions = generate_captions(300)
    assert captions == generate_captions(300)
    assert captions[:20] == generate_captions(20)
    assert len(set(captions)) > 290
    assert generate_captions(0) == []


def test_spans_name_classes():
    text, spans = class_prompt(16)
    named = {text[start:end] for start, end in spans}
    assert len(COCO_CLASSES) == 80
    assert len(named) == 16 and named <= set(COCO_CLASSES)


def test_boxes_lie_inside():
    sizes = [(10, 20), (300, 40)]
    images = generate_boxes(sizes, 2, 5)
    assert images == generate_boxes(sizes, 2, 5)
    for (height, width), boxes in zip(sizes, images, strict=True):
        assert 2 <= len(boxes) <= 5
        for x0, y0, x1, y1 in boxes:
            assert 0 <= x0 < x1 <= width + 0.01
            assert 0 <= y0 < y1 <= height + 0.01
