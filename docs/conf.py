"""Sphinx settings. `docs/build.py` fills the source folder; nothing on the site comes from another host."""
import shutil
from importlib.util import find_spec
from pathlib import Path

project, author, copyright, language = 'kdnb', 'the kdnb authors', '2026, the kdnb authors', 'en'
extensions = ['myst_nb']
nb_execution_mode = 'off' # they have their outputs (make book)
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
myst_enable_extensions = ['dollarmath', 'colon_fence', 'attrs_inline']
myst_heading_anchors = 4
exclude_patterns = ['static']
html_theme, html_title, html_static_path, html_css_files = 'furo', 'kdnb', ['static'], ['site.css']
html_favicon = 'static/icon.svg'
html_show_sphinx = html_copy_source = html_show_sourcelink = False

# mathematics by a MathJax that comes as a Python package; one of its files is enough
mathjax = Path(find_spec('sphinx-mathjax-offline').origin).parent/'static'/'mathjax'/'tex-svg.js'
shutil.copy(mathjax, Path(__file__).parent/'static')
mathjax_path = 'tex-svg.js'
mathjax3_config = {'options': {'enableMenu': False}}

# a second line of defence: a page that would load something from another host is told not to
POLICY = ("default-src 'self' 'unsafe-inline' file: data: blob:; "
          "object-src 'none'; base-uri 'none'; form-action 'self' file:")

def forbid(app, page, template, context, doctree):
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    context['metatags'] = policy + context.get('metatags', '')

def setup(app): app.connect('html-page-context', forbid)
