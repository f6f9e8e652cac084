"""Small texts laid out as the Complete Works of Shakespeare are."""

import gzip

START = "*** START OF THIS PROJECT GUTENBERG EBOOK COMPLETE WORKS--WILLIAM SHAKESPEARE ***\n\n"
END = """

End of the Project Gutenberg EBook of The Complete Works of William
Shakespeare, by William Shakespeare

*** END OF THIS PROJECT GUTENBERG EBOOK COMPLETE WORKS--WILLIAM SHAKESPEARE ***

"""
CONTENTS = "Contents\n\n  HAMLET. A title that looks like a role.\n    THE SONNETS\n"
NOTICE = """
<<THIS ELECTRONIC VERSION IS
WITH PERMISSION.  ELECTRONIC COPIES
COMMERCIALLY.  PROHIBITED
FOR MEMBERSHIP.>>

"""


def speech(role, *lines):
    """A role's lines, the first beside its name."""
    return f"  {role}. " + "\n    ".join(lines) + "\n"


def work(title, text, gap=1):
    """A work with `gap` blank lines between its title and its author, 1 to 6."""
    heading = f"\n1603\n\n{title}\n" + "\n" * gap + "by William Shakespeare\n"
    return f"{heading}{NOTICE}\n{text}\nTHE END\n{NOTICE}"


SONNETS = work("THE SONNETS", speech("FAIREST", *"abc") + speech("CREATURES", *"abc"))


def text(*works, end=END):
    """A whole file: what stands before the works, the sonnets, `works` and what stands after."""
    return START + CONTENTS + SONNETS + "".join(works) + end


def write(folder, content, name="pg100.txt.gz"):
    """Writes `content` as it is posted: UTF-8 with a byte order mark, lines ending in CR LF."""
    raw = content.replace("\n", "\r\n").encode("utf-8-sig")
    path = folder / name
    path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    return path
