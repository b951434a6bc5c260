"""Size, density and examples of the notebooks, as a table: `python tools/measure.py [nbs]`."""
import ast, json, re, statistics, sys
from collections import Counter
from pathlib import Path

DIRECTIVE = re.compile(r'^#\|\s*(\w+)', re.M)
SHOWN = ('display_data', 'execute_result', 'stream')


def cells_of(path):
    "Code cells of a notebook: source, directives, does it show something"
    nb = json.loads(path.read_text(encoding='utf-8'))
    for cell in nb['cells']:
        if cell['cell_type'] != 'code': continue
        source = ''.join(cell['source'])
        yield source, set(DIRECTIVE.findall(source)), any(o['output_type'] in SHOWN for o in cell['outputs'])


def code_lines(source):
    "Lines that are neither blank nor a directive"
    return [o for o in source.splitlines() if o.strip() and not o.startswith('#|')]


def quantile(values, q): return sorted(values)[min(len(values)-1, round(q*(len(values)-1)))] if values else 0


def nodes_per_statement(tree):
    "AST nodes of every statement, without the statements inside it"
    def size(node): return 1 + sum(size(o) for o in ast.iter_child_nodes(node) if not isinstance(o, ast.stmt))
    found = [o for o in ast.walk(tree) if isinstance(o, ast.stmt)]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    doc = {id(o.body[0]) for o in ast.walk(tree) if isinstance(o, documented) and ast.get_docstring(o) is not None}
    return [size(o) for o in found if id(o) not in doc and not isinstance(o, (ast.Import, ast.ImportFrom))]


def public_names(tree):
    "Names that a module defines and exports"
    for o in tree.body:
        if isinstance(o, (ast.ClassDef, ast.FunctionDef)): names = [o.name]
        else: names = [t.id for t in getattr(o, 'targets', []) if isinstance(t, ast.Name)]
        yield from (n for n in names if not n.startswith('_'))


def measure(root):
    "Rows of the table: what, value"
    exported, demos, trees, lines_of, modules = [], [], [], Counter(), set()
    for path in sorted(root.rglob('*.ipynb')):
        if any(o.startswith(('.', '_')) for o in path.parts): continue
        cells = list(cells_of(path))
        target = next((re.search(r'default_exp\s+(\S+)', s)[1] for s,d,_ in cells if 'default_exp' in d), None)
        if not target: continue
        modules.add(target)
        for source, d, shown in cells:
            body = code_lines(source)
            if {'export', 'exports', 'exporti'} & d:
                exported.append(body)
                trees.append(ast.parse(source))
                lines_of[target.rpartition('.')[0] or target] += len(body)
            elif body and not {'hide', 'default_exp'} & d: demos.append((len(body), shown, max(map(len, body))))
    sizes = [len(o) for o in exported]
    total = sum(sizes)
    nodes = [n for t in trees for n in nodes_per_statement(t)]
    lambdas = sum(isinstance(o, ast.Assign) and isinstance(o.value, ast.Lambda) for t in trees for o in ast.walk(t))
    over = [sum(len(l) > k for o in exported for l in o) for k in (120, 140)]
    names = sum(len(list(public_names(t))) for t in trees)
    shown = sum(s for _,s,_ in demos)/len(demos)
    return [
        ('modules', len(modules)), ('exported lines', total), ('public names', names),
        ('export cell lines: median / p95 / max',
         f'{statistics.median(sizes):g} / {quantile(sizes, .95)} / {max(sizes)}'),
        ('AST nodes a statement: median / p95', f'{statistics.median(nodes):g} / {quantile(nodes, .95)}'),
        ('exported lines over 120 / 140 columns', f'{over[0]} / {over[1]}'),
        ('demonstration lines over 120 columns', sum(w > 120 for *_,w in demos)),
        ('assigned lambdas per 1000 lines', f'{1000*lambdas/total:.1f}'),
        ('demonstration cells', len(demos)), ('of these with visible output', f'{shown:.0%}'),
        ('their lines: median / p95', f'{statistics.median([n for n,*_ in demos]):g} / '
                                      f'{quantile([n for n,*_ in demos], .95)}'),
        *((f'lines in {k}', v) for k,v in lines_of.most_common())]


if __name__ == '__main__':
    for what, value in measure(Path(sys.argv[1] if len(sys.argv) > 1 else 'nbs')): print(f'{what:45} {value}')
