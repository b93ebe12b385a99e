"""Emoji: a class is a character, its four images are as Google, Twitter, Facebook and Apple draw it, 64 pixels each.

Classes are the characters that all four have, without their skin tones; the first half, in the order of the packages,
trains. Source: npm packages emoji-datasource-{google,twitter,facebook,apple} 16.0.0 (Cal Henderson).
"""

import json
import os

from datasets.layout import find_layout

ABOUT = "emoji, 1,857 characters as four vendors draw them (npm packages emoji-datasource-...)"
VENDORS = ("google", "twitter", "facebook", "apple")
COUNTS = {"train": (928, 3712), "test": (929, 3716)}
TREE = "  DIR/emoji/emoji.json and DIR/emoji/{google,twitter,facebook,apple}/*.png"
NPM = [f"emoji-datasource-{vendor}@16.0.0" for vendor in VENDORS]  # what `npm pack` fetches
GET = "python -m datasets.prepare emoji --source_path DIR"
UNPACK = {f"package/img/{vendor}/64": f"emoji/{vendor}" for vendor in VENDORS}
UNPACK["package/emoji.json"] = "emoji/emoji.json"


def rows(source_path):
    """{split: [(class, class name, path), ...]} of emoji/ in source_path."""
    folder, listing = find_layout(source_path, "emoji", [("emoji", "emoji.json")], TREE, GET)
    with open(os.path.join(folder, listing), encoding="utf-8") as file:
        # the packages' word, not the files that are there: a missing file must not move the split
        names = [entry["image"] for entry in json.load(file) if all(entry.get(f"has_img_{v}") for v in VENDORS)]
    images = [(name, name, os.path.join(folder, vendor, name)) for name in names for vendor in VENDORS]
    half = len(names) // 2 * len(VENDORS)
    return {"train": images[:half], "test": images[half:]}
