"""Ask a picture several questions, and say which of several texts fits it best.

python examples/answer_questions.py scenes drawing.png "what color is the circle?"
"""

import argparse

import fiber

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("model", help="folder of a finished model of the coarse stage")
options.add_argument("picture")
options.add_argument("questions", nargs="+")
options.add_argument("--texts", nargs="*", default=["a red circle", "a blue square"])
given = options.parse_args()

model = fiber.load(given.model)
for question in given.questions:
    answers = model.answer(given.picture, question, top_k=3)
    print(question, ", ".join(f"{text} ({score:.2f})" for text, score in answers))

# One picture against every text: the probabilities that they belong together.
scores = model.match(given.picture, given.texts)
for score, text in sorted(zip(scores, given.texts, strict=True), reverse=True):
    print(f"{score:.2f}  {text}")
