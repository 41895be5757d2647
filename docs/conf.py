"""Sphinx: the API reference, from the docstrings as they are. ``make docs`` builds it."""

import ast
import importlib
import inspect
import textwrap
from importlib.metadata import version as version_of
from pathlib import Path

import jax
from sphinx.addnodes import desc_signature
from sphinx.pycode import ModuleAnalyzer

import jaxcl

project = "jaxcl"
author = copyright = "jaxcl developers"
version = release = version_of("jaxcl")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
html_theme = "furo"
html_title = f"jaxcl {version}"
templates_path = ["_templates"]
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # fields of records are described once, in their list
nitpicky = True  # every role names something that is documented here
suppress_warnings = ["ref.python"]  # one object may have two names

# Files of packages: the template shows their docstrings, and their contents where the
# package lists nothing; a function may have the name of its file.
autosummary_context = {"files": {}}
for folder in sorted(Path(jaxcl.__file__).parent.glob("[a-z]*/")):
    package = importlib.import_module(f"jaxcl.{folder.name}")
    listed = getattr(package, "__all__", ())
    stems = sorted(file.stem for file in folder.glob("[a-z]*.py"))
    options = {s: ":no-index:" if s in listed else "" for s in stems}
    if not listed:
        options = dict.fromkeys(stems, ":members:")
    autosummary_context["files"][package.__name__] = options
    # Sphinx reads the comments `#:` of constants in the package alone.
    analyzer = ModuleAnalyzer.for_module(package.__name__)
    analyzer.analyze()
    for module in ("jaxcl.typing", *(f"{package.__name__}.{stem}" for stem in stems)):
        comments = ModuleAnalyzer.for_module(module).find_attr_docs().items()
        analyzer.attr_docs |= {at: text for at, text in comments if at[1] in listed}

for name, value in list(vars(jaxcl.tree).items()):  # Sphinx sees no function in these
    if isinstance(value, jax.custom_jvp):
        setattr(jaxcl.tree, name, value.__wrapped__)


def source_signature(app, what, name, value, options, signature, returns):
    """Types as the source writes them: ``Key``, ``Float[Array, "b d"]``."""
    del app, what, name, options
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(value)))
        node = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError):
        return signature, returns
    if isinstance(node, ast.FunctionDef):
        args = node.args
        if args.args and args.args[0].arg == "self":
            del args.args[0]
        return f"({ast.unparse(args)})", node.returns and ast.unparse(node.returns)
    if isinstance(node, ast.ClassDef):
        fields = [ast.unparse(a) for a in node.body if isinstance(a, ast.AnnAssign)]
        return f"({', '.join(fields)})" if fields else signature, returns
    return signature, returns


def skip_field(app, what, name, value, skip, options):
    """Leave out the fields of named tuples: the signature lists them."""
    del app, what, name, options
    return skip or type(value).__name__ == "_tuplegetter"


def drop_alias(app, domain, kind, content):
    """Leave out what a type is an alias of, in which all names are written out."""
    del app, domain, kind
    for part in list(content.children):
        if part.astext().startswith("alias of "):
            content.remove(part)


def resolve(app, env, node, text):
    """The name that a package lists for one of its files: ``jaxcl.report.records.frame``.

    A type in a signature may be of another project: it stays as it is.
    """
    if any(isinstance(n, desc_signature) for n in parents(node)):
        return text
    *path, name = f"{node.get('py:module')}.{node['reftarget']}".split(".")
    if "jaxcl" in path[1:]:  # the role gives the full name
        path = path[path.index("jaxcl", 1) :]
    full, python = ".".join([*path[:2], name]), env.get_domain("py")
    return python.resolve_xref(
        env, node["refdoc"], app.builder, "obj", full, node, text
    )


def parents(node):
    """The nodes around a node."""
    while node := node.parent:
        yield node


def setup(app):
    """Connect the functions above."""
    app.connect("autodoc-process-signature", source_signature)
    app.connect("autodoc-skip-member", skip_field)
    app.connect("object-description-transform", drop_alias)
    app.connect("missing-reference", resolve)
