"""Which settings a file reads, found in its syntax tree.

A read is `<section>.<field>` where the left side is known to be that section of the config: it is annotated with the
section's class, was assigned from the section, or is called like the section (`algo.beta`, `config.algo.beta`) and
nothing says that it is something else.
"""

import ast


def config_reads(tree: ast.AST, sections: dict[str, str], bases: dict[str, str] | None = None) -> set[tuple[str, str]]:
    """Pairs (section, attribute) that are read; `sections` maps a section's name to its class name, and `bases` further
    class names, those that a section's class extends, to the section's name."""
    finder = _Finder(sections, bases or {})
    finder.visit(tree)
    return finder.reads


class _Finder(ast.NodeVisitor):
    """Walks with the names that stand for a section in the function at hand; inner functions see the outer names."""

    def __init__(self, sections: dict[str, str], bases: dict[str, str]):
        self.sections = sections
        self.by_class = bases | {kind: name for name, kind in sections.items()}
        self.names: dict[str, str | None] = {}
        self.attributes: dict[str, str] = {}
        self.reads: set[tuple[str, str]] = set()

    def section_of(self, node: ast.AST) -> str | None:
        if isinstance(node, ast.Name):
            return self.names.get(node.id, node.id if node.id in self.sections else None)
        if isinstance(node, ast.Attribute):
            if isinstance(node.value, ast.Name) and node.value.id == "self" and node.attr in self.attributes:
                return self.attributes[node.attr]
            return node.attr if node.attr in self.sections else None
        if isinstance(node, ast.Call) and node.args:  # settings_of(config.algo, PpoConfig)
            return self.by_class.get(getattr(node.args[-1], "id", None))
        return None

    def annotated(self, annotation: ast.AST | None) -> str | None:
        """The section whose class an annotation names, in a string or a union too."""
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode="eval")
        for node in ast.walk(annotation) if annotation is not None else ():
            name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
            if name in self.by_class:
                return self.by_class[name]
        return None

    def visit_FunctionDef(self, node):
        outer = self.names
        self.names = dict(outer)
        arguments = node.args
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
            self.names.pop(argument.arg, None)
            if argument.annotation is not None:
                self.names[argument.arg] = self.annotated(argument.annotation)
        self.generic_visit(node)
        self.names = outer

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node):
        outer = self.attributes
        self.attributes = {
            item.target.id: section
            for item in node.body
            if isinstance(item, ast.AnnAssign) and (section := self.annotated(item.annotation))
        }
        self.generic_visit(node)
        self.attributes = outer

    def visit_Assign(self, node):
        for target in node.targets:
            several = isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
            pairs = zip(target.elts, node.value.elts, strict=False) if several else [(target, node.value)]
            for name, value in pairs:
                if isinstance(name, ast.Name):
                    self.names[name.id] = self.section_of(value)
        self.generic_visit(node)

    def visit_Attribute(self, node):
        section = self.section_of(node.value)
        if section and isinstance(node.ctx, ast.Load):
            self.reads.add((section, node.attr))
        self.generic_visit(node)
