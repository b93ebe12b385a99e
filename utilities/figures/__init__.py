"""The README's pictures, beside the scripts that draw them: python -m utilities.figures.flow or .glyphs FILE.png"""
