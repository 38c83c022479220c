"""kdnb teaches a language model new entities by context distillation.

    from kdnb import load_lm, Entity, make_transfer_set, Distill, evaluate

A name below is imported when it is first used, so that `import kdnb` and `kdnb --help` load neither torch nor transformers.
nbdev keeps the line of the version; the rest is written by hand."""
__version__ = "0.1.0"

_NAMES = {'core.errors': 'KdnbError',
          'core.stats': 'interval',
          'data.entities': 'Entity Probe',
          'data.dataset': 'load_dataset',
          'data.synthetic': 'compose',
          'data.definitions': 'read_definitions',
          'data.transfer_sets': 'TransferSet read_transfer_sets',
          'data.benchmarks': 'load_data',
          'models.model': 'LM load_lm',
          'models.generation': 'generate',
          'transfer.generator': 'make_transfer_set',
          'transfer.registry': 'make_generator',
          'edits.edit': 'Edit',
          'edits.storage': 'load_edit',
          'edits.routing': 'AdapterRouter',
          'methods.distill': 'Distill',
          'methods.finetune': 'FineTune',
          'methods.rome': 'Rome',
          'methods.memit': 'Memit',
          'methods.mend': 'Mend',
          'methods.prompting': 'Prepend Retrieve',
          'methods.registry': 'make_method',
          'evaluation.answers': 'evaluate',
          'experiments.runs': 'Experiment',
          'experiments.results': 'collect',
          'reporting.runner': 'run_report',
          'apps.teach': 'teach'}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = list(_MODULES)

def __getattr__(name):
    if name not in _MODULES: raise AttributeError(f"module 'kdnb' has no attribute {name!r}")
    from importlib import import_module
    globals()[name] = value = getattr(import_module(f'kdnb.{_MODULES[name]}'), name)
    return value

def __dir__(): return sorted({*globals(), *_MODULES})
