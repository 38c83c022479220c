"""Builds the documentation site: the book (nbs), the reports (outputs) and the pages beside this file.

    python docs/build.py [--out _docs]

nbdev documents what a notebook exports, Sphinx with MyST-NB makes pages of notebooks and Markdown, and this
script fills the source folder between the two. Nothing is run: notebooks have their outputs (`make book`)."""
import argparse, shutil, subprocess, sys
from pathlib import Path

import nbformat

from book import book
from kdnb.core.errors import KdnbError
from kdnb.core.process import module_command, safe_environment
from kdnb.reporting.gallery import results
from notebooks import book_page, doc_pages, page, report_page
from reference import api, commands
from results import claims, copy_figures, gallery, page_name

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parent.parent


def clear(folder, mark):
    "Removes a folder that an earlier run made: it has a file of ours in it. Another folder is an error."
    is_other = folder.is_dir() and any(folder.iterdir()) and not (folder/mark).is_file()
    if folder.is_symlink() or folder.exists() and not folder.is_dir() or is_other:
        raise KdnbError(f'{folder} was not made by docs/build.py and is not removed: choose another folder')
    shutil.rmtree(folder, ignore_errors=True)

def lead_to_site(text, found):
    "A page whose links into the repository lead to the site's pages."
    text = text.replace('](../../nbs/', '](../book/').replace('](../../outputs)', '](../reports/index.md)')
    for r in found:
        place = Path(r['page']).resolve().relative_to(ROOT).as_posix()
        text = text.replace(f'](../../{place})', f'](../reports/{page_name(r)}.ipynb)')
    return text

def make_source(site):
    "Fills the folder that Sphinx reads."
    found, pages = results(ROOT/'outputs'), doc_pages()
    clear(site, 'static/site.css')
    shutil.copytree(HERE/'pages', site/'pages')
    for p in (site/'pages').glob('*.md'):
        p.write_text(lead_to_site(p.read_text(encoding='utf-8'), found), encoding='utf-8')
    for name in ('index.md', 'book'): shutil.move(site/'pages'/name, site/name) # a page a chapter is in book
    shutil.copytree(HERE/'static', site/'static')
    shutil.copy(HERE/'conf.py', site)
    for p in book():
        to = site/page(p)[1:]
        to.parent.mkdir(exist_ok=True)
        nbformat.write(book_page(p, nbformat.read(p, 4), pages), to)
    (site/'reports').mkdir()
    copy_figures(found, site/'reports')
    for r in found: nbformat.write(report_page(r), site/'reports'/f"{r['report']}-{r['label']}.ipynb")
    made = {'reports/index': gallery(found), 'pages/claims': claims(found),
            'pages/commands': commands(), 'pages/api': api()}
    for name, text in made.items(): (site/f'{name}.md').write_text(text, encoding='utf-8')


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('--out', default=str(ROOT/'_docs'), help='folder of the site')
    p.add_argument('--work', default=str(ROOT/'_proc'/'site'), help='folder of what Sphinx reads')
    a = p.parse_args()
    out, site = Path(a.out), Path(a.work)
    try:
        clear(out, '.buildinfo')
        make_source(site)
    except KdnbError as e: return str(e)
    made = site.with_name('html') # myst-nb leaves a folder beside it
    command = module_command('sphinx', '-E', '-W', '--keep-going', '-q', '-b', 'html', site, made)
    status = subprocess.run(command, env=safe_environment()).returncode
    if not status:
        clear(out, '.buildinfo')
        shutil.move(made, out)
        print(f'the site is {out}: open {out}/index.html')
    return status


if __name__ == '__main__': sys.exit(main())
