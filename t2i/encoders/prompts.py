"""What InternVL is asked to write: one caption from the image, then each from the one above.

The nano model is trained on exactly these words; InternVL3-2B understands them as they are.
"""

from __future__ import annotations

DETAILED_PROMPT = "Describe the image in detail: the objects, their places and the background."
SENTENCES_PROMPT = "Rewrite this description in a few sentences."
SENTENCE_PROMPT = "Summarize this description in one sentence."
KEYWORDS_PROMPT = "List the keywords of this description, separated by commas."

# Levels 2 to 4, each written from the text of the level above.
DISTILLING_PROMPTS = (SENTENCES_PROMPT, SENTENCE_PROMPT, KEYWORDS_PROMPT)
