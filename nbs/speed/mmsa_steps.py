"""MMSA's own training loop, a few steps at a time. It runs in MMSA's environment and knows nothing of msmix.

One JSON object on the command line says what to train. Every line on standard input is a number of steps; the answer is a line
of JSON with their seconds, measured from batch to batch inside an epoch: loading, `.to`, forward, backward, update, `.item()`,
`.cpu()`. What happens between epochs is left out.

MMSA 2.2.1 does not run on a current PyTorch as it is. Repaired here, in this process and not in its files:
ReduceLROnPlateau has lost the argument `verbose`; `MMSA_run` selects a CUDA device even where there is none, so data, model and
trainer are put together as it does. It would stop when validation no longer improves; here it goes on while steps are asked for.
"""
import json, sys, time
from pathlib import Path
import torch

plateau = torch.optim.lr_scheduler.ReduceLROnPlateau


class Plateau(plateau):
    def __init__(self, *args, verbose=None, **kwargs): super().__init__(*args, **kwargs)


torch.optim.lr_scheduler.ReduceLROnPlateau = Plateau


class Stop(Exception): pass


class Paced:
    "A loader that hands out batches as they are asked for on standard input"
    def __init__(self, loader, answer, device):
        self.loader, self.answer, self.device, self.left, self.seconds = loader, answer, device, 0, []

    def __len__(self): return len(self.loader)

    def now(self):
        if self.device.type == 'cuda': torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def __iter__(self):
        started = None
        for batch in self.loader:
            if started is not None:
                self.seconds.append(self.now()-started)
                self.left -= 1
            if self.left <= 0:
                if self.seconds: self.answer({'seconds': self.seconds})
                self.seconds, line = [], sys.stdin.readline()
                if not line.strip(): raise Stop
                self.left = int(line)
            started = self.now()
            yield batch


def main(asked, answer):
    from MMSA.config import get_config_regression
    from MMSA.data_loader import MMDataLoader
    from MMSA.models import AMIO
    from MMSA.trains import ATIO
    from MMSA.utils import setup_seed
    torch.set_num_threads(asked['threads'])
    args = get_config_regression(asked['model'], asked['dataset'])
    device = torch.device(asked['device'])
    if device.type == 'cuda': torch.cuda.set_device(device.index or 0)
    args.update(featurePath=asked['pickle'], device=device, train_mode='regression', custom_feature=None, feature_T='', feature_A='', feature_V='',
                cur_seed=1, model_save_path=str(Path(asked['pickle']).with_suffix('.pth')), batch_size=asked['batch_size'], early_stop=sys.maxsize)
    if asked.get('pretrained'): args['pretrained'] = asked['pretrained']
    setup_seed(0)
    loaders = MMDataLoader(args, asked['workers'])
    model = AMIO(args).to(device)
    answer({'parameters': sum(p.numel() for p in model.parameters() if p.requires_grad), 'torch': torch.__version__})
    loaders['train'] = Paced(loaders['train'], answer, device)
    try: ATIO().getTrain(args).do_train(model, loaders)
    except Stop: pass


if __name__ == '__main__':
    said = sys.stdout
    def answer(o): print(json.dumps(o), file=said, flush=True)
    sys.stdout = sys.stderr
    main(json.loads(sys.argv[1]), answer)
