"""Mixers in models of others: parts that are computed twice or compiled, and batches that do not fit."""
import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from msmix import MSMix
from msmix.mixers.base import CALLS, build_mixer
from msmix.names import MIXERS, UsageError

DIMS = {'text': 6, 'audio': 4}
METHODS = [*(o for o in MIXERS if o != 'none'), 'published']


def make(name, **kw):
    torch.manual_seed(0)
    return MSMix.published(DIMS, **kw) if name == 'published' else build_mixer(name, DIMS, **kw)


def batch(seed, steps=None, B=6):
    g = torch.Generator().manual_seed(seed)
    shape = {m: (B, d) if steps is None else (B, steps, d) for m, d in DIMS.items()}
    return {m: torch.randn(o, generator=g) for m, o in shape.items()}, 6*torch.rand(B, 1, generator=g)-3


def pooled(z, mask=None):
    return sum((o if o.dim() == 2 else o.mean(1)).sin().mean(1, keepdim=True) for o in z.values())


def part_with(mixer, encoder):
    "A part of a model: encoder, mixer and loss; dropout so that PyTorch's own generator has a part in it too"
    def part(text, audio, y):
        z = {'text': torch.nn.functional.dropout(encoder(text), .2), 'audio': audio}
        out = mixer(z, y, predict=pooled)
        loss = (pooled(out.z)*(1+out.y)).square().sum()
        return loss + sum(o for o in out.aux.values())
    return part


def gradients(name, run, steps=None, order=None):
    "Gradients of three calls under way at once, and what is drawn afterwards"
    mixer, encoder = make(name), torch.nn.Linear(6, 6)
    part, losses = part_with(mixer, encoder), []
    for k in range(3):
        z, y = batch(k, steps)
        losses.append(run(part, z['text'].requires_grad_(), z['audio'], y))
    if order is None: sum(losses).backward()
    else:
        for k in order: losses[k].backward()
    own = [p.grad for p in (*encoder.parameters(), *mixer.parameters()) if p.grad is not None]
    z, y = batch(9, steps)
    return [*own, *losses, mixer(z, y, predict=pooled).y]


def same(a, b): return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize('name', METHODS)
def test_checkpointed_mixers_have_the_gradients_of_plain_ones(name):
    for steps in (None, 3):
        plain = gradients(name, lambda part, *x: part(*x), steps)
        for reentrant in (True, False):
            again = gradients(name, lambda part, *x: checkpoint(part, *x, use_reentrant=reentrant), steps)
            assert same(plain, again), (name, steps, reentrant)


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 0, 1)])
def test_microbatches_are_repeated_in_any_order(order):
    plain = gradients('msmix', lambda part, *x: part(*x), order=order)
    for reentrant in (True, False):
        again = gradients('msmix', lambda part, *x: checkpoint(part, *x, use_reentrant=reentrant), order=order)
        assert same(plain, again)


@pytest.mark.parametrize('outer', [True, False])
@pytest.mark.parametrize('inner', [True, False])
def test_parts_within_parts(outer, inner):
    def nested(part, *x):
        return checkpoint(lambda *o: 2*checkpoint(part, *o, use_reentrant=inner)+part(*o), *x, use_reentrant=outer)
    plain = gradients('msmix', lambda part, *x: 2*part(*x)+part(*x))
    for run in (nested, lambda part, *x: checkpoint(nested, part, *x, use_reentrant=False)):
        found = gradients('msmix', run)                            # parts are added in another order
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)


def test_two_backward_passes_through_one_part():
    def twice(run):
        mixer, (z, y) = make('msmix'), batch(0)
        x = z['text'].requires_grad_()
        loss = run(part_with(mixer, torch.nn.Identity()), x, z['audio'], y)
        torch.manual_seed(5)                                       # the place of PyTorch's own numbers does not matter
        grads = [torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2)]
        return [*grads, mixer(*batch(1)).y]
    assert same(twice(lambda part, *x: part(*x)), twice(lambda part, *x: checkpoint(part, *x, use_reentrant=False)))


def test_a_checkpointed_half_inside_adversarial_mixing():
    for outer in (True, False):
        def adversary(run_half, run):
            mixer, (z, y) = make('advmixup'), batch(0)
            half = torch.nn.Linear(6, 1)
            def predict(z, mask): return run_half(lambda o: half(o.tanh()), z['text'])
            def part(text, audio):
                out = mixer({'text': text.sin(), 'audio': audio}, y, predict=predict)
                return (out.z['text'].square().sum(1, keepdim=True)*out.y).sum()
            x = z['text'].requires_grad_()
            run(part, x, z['audio']).backward()
            return [x.grad]
        def direct(part, *x): return part(*x)
        def halves(part, *x): return checkpoint(part, *x, use_reentrant=False)
        def whole(part, *x): return checkpoint(part, *x, use_reentrant=outer)
        plain = adversary(direct, direct)
        assert same(plain, adversary(halves, direct)) and same(plain, adversary(halves, whole))


def test_nothing_is_remembered_when_the_graph_is_gone():
    mixer = make('msmix')
    for k in range(5):
        z, y = batch(k)
        given = z['text'].requires_grad_(), z['audio'], y
        loss = checkpoint(part_with(mixer, torch.nn.Identity()), *given, use_reentrant=bool(k % 2))
        if k: loss.backward()
    del loss
    import gc
    gc.collect()
    assert len(CALLS) == 0


def test_a_copy_draws_what_the_mixer_draws():
    for name in METHODS:
        mixer = make(name)
        mixer(*batch(0), predict=pooled)
        copies = [copy.deepcopy(mixer), pickle.loads(pickle.dumps(mixer))]
        expected = mixer(*batch(1), predict=pooled).y
        for o in copies: assert torch.equal(o(*batch(1), predict=pooled).y, expected)


def test_compiled_halves_and_compiled_steps():
    torch._dynamo.reset()
    z, y = batch(0)
    def step(mixer, first, second):
        out = mixer({**z, 'text': first(z['text'])}, y, predict=pooled)
        return second(out.z['text'])*out.y
    def ways(compiled):
        torch.manual_seed(0)
        first, second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 1)
        if compiled != 'halves': return first, second
        return tuple(torch.compile(o, fullgraph=True, backend='eager') for o in (first, second))
    for name in ('msmix', 'powmix'):
        plain, halves, whole = make(name), make(name), make(name)
        compiled = torch.compile(step, backend='eager')
        for _ in range(2):
            expected = step(plain, *ways(''))
            assert torch.equal(step(halves, *ways('halves')), expected)
            assert torch.equal(compiled(whole, *ways('')), expected)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match='mix_eagerly'):
        torch.compile(step, fullgraph=True, backend='eager')(make('msmix'), *ways(''))


Z, Y = batch(0)
S, _ = batch(0, 3)
REAL = torch.ones(6, 3, dtype=torch.bool)
BAD = {
    'a width': (dict(z={**Z, 'text': torch.zeros(6, 9)}), 'is 9 wide and the mixer was made for 6'),
    'no batch': (dict(z={**Z, 'text': torch.zeros(6)}), r'has shape \(6,\)'),
    'four axes': (dict(z={**Z, 'text': torch.zeros(6, 2, 2, 6)}), r'pass vectors \(B,d\) or sequences'),
    'an empty batch': (dict(z={m: o[:0] for m, o in Z.items()}, y=Y[:0]), 'neither empty'),
    'no steps': (dict(z={m: o[:, :0] for m, o in S.items()}), 'neither empty'),
    'other samples': (dict(z={**Z, 'text': Z['text'][:5]}), '5 samples in text and 6 in audio'),
    'whole numbers': (dict(z={**Z, 'text': Z['text'].long()}), 'a tensor of torch.int64: pass a dense tensor'),
    'a list': (dict(z=list(Z.values())), 'found a list'),
    'an array': (dict(z={m: o.numpy() for m, o in Z.items()}), 'is a ndarray'),
    'two devices': (dict(z={**Z, 'audio': Z['audio'].to('meta')}), 'move them to one device'),
    'fewer labels': (dict(y=Y[:5]), '6 samples and 5 labels'),
    'labels of three axes': (dict(y=Y[..., None]), r'labels have shape \(6, 1, 1\)'),
    'one label': (dict(y=torch.tensor(1.)), r'labels have shape \(\)'),
    'class numbers': (dict(y=torch.arange(6)), 'one-hot rows'),
    'labels elsewhere': (dict(y=Y.to('meta')), 'labels on meta: move them'),
    'labels in a list': (dict(y=Y.tolist()), 'labels are a list'),
    'masked vectors': (dict(mask={m: REAL for m in Z}), 'is a vector, which has no steps'),
    'a mask of floats': (dict(z=S, mask={m: REAL.float() for m in Z}), r'\(mask.bool\(\)\)'),
    'half a mask': (dict(z=S, mask={'text': REAL}), 'the mask lacks audio'),
    'a short mask': (dict(z=S, mask={'text': REAL[:, :2], 'audio': REAL}), r'\(6, 2\) and its latent \(6, 3, 6\)'),
    'one mask': (dict(z=S, mask=REAL), 'pass one by modality'),
    'a mask elsewhere': (dict(z=S, mask={'text': REAL.to('meta'), 'audio': None}), 'its latent on cpu'),
    'labels of a stranger': (dict(labels={'face': Y}), "has a modality 'face'"),
    'labels of few': (dict(labels={'text': Y[:2]}), '6 samples and 2 labels of text'),
    'labels of all at once': (dict(labels=Y), 'pass labels by modality'),
}


@pytest.mark.parametrize('what', BAD)
def test_what_does_not_fit_is_one_sentence(what):
    given, says = BAD[what]
    for name in ('none', *METHODS):
        mixer = make(name, **({'at': 'cut'} if name == 'mixup' else {'layers': 'cut'} if name == 'manifold' else {}))
        with pytest.raises(UsageError, match=says) as e:
            mixer(**{'z': Z, 'y': Y, 'predict': pooled, **given})
        assert '\n' not in str(e.value) and len(str(e.value)) < 240


def test_an_empty_mask_is_no_mask():
    for name in METHODS:
        (a, b) = (make(name)(S, Y, mask=mask, predict=pooled) for mask in (None, {}))
        assert all(torch.equal(a.z[m], b.z[m]) for m in S)


SWITCHES = {'msmix': ('ordered', 'leak', 'signed', 'sass', 'sig', 'sal'), 'powmix': ('anisotropic', 'dynamic'),
            'mixup': ('per_batch',), 'manifold': ('per_batch',), 'cmixup': ('per_batch',), 'lemda': ('consistency',)}


@pytest.mark.parametrize('name', SWITCHES)
def test_a_switch_is_on_or_off(name):
    from msmix.names import resolve, MIXERS
    for switch in (*SWITCHES[name], 'sequences'):
        for wrong in ('False', 'no', 2, []):
            with pytest.raises(UsageError, match=f'{switch}=.* does not work: give True or False'):
                resolve(name, MIXERS, 'mixer')({'text': 6, 'audio': 6}, **{switch: wrong})


def test_a_mixer_inside_vmap_is_refused():
    mixer = make('msmix')
    mapped = torch.vmap(lambda text, audio, y: mixer({'text': text, 'audio': audio}, y).y, randomness='different')
    with pytest.raises(UsageError, match='cannot be called inside vmap'): mapped(*(o[None] for o in (*Z.values(), Y)))


def test_labels_outside_their_range():
    for mixer in (make('msmix'), make('published'), make('cmixup')):
        for wrong in (70., float('nan'), float('inf')):
            says = 'make the mixer with label_range=' if wrong == 70. else 'leave such clips out'
            with pytest.raises(UsageError, match=rf'a label is (70|nan|inf) and label_range=\(-3, 3\): {says}'):
                mixer(Z, torch.full((6, 1), wrong))
    fine = dict(label_range=(0, 100)), dict(sal=False)
    for mixer in (*(make('msmix', **o) for o in fine), make('cmixup', bandwidth=5.), make('mixup')):
        mixer(Z, torch.full((6, 1), 70.))


def test_labels_on_a_device_are_looked_at_once(monkeypatch):
    mixer, looks = make('msmix'), []
    monkeypatch.setattr('msmix.mixers.base.check_values', lambda *o: looks.append(o))
    elsewhere = make('msmix').to('meta')
    for _ in range(3): mixer(Z, Y), elsewhere.check_batch({m: o.to('meta') for m, o in Z.items()}, Y.to('meta'))
    assert len(looks) == 3+1


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_latents_of_other_types(dtype):
    for name in METHODS:
        for mixer in (make(name), make(name).to(dtype)):
            out = mixer({m: o.to(dtype) for m, o in Z.items()}, Y, predict=pooled)
            assert all(o.dtype == dtype and o.isfinite().all() for o in out.z.values()) and out.y.dtype == torch.float32
            assert mixer(Z, Y, predict=pooled).z['text'].dtype == torch.float32


def test_a_clip_without_a_real_step_stays_finite():
    mask = {m: REAL.clone() for m in S}
    mask['audio'][3] = False
    for name in METHODS:
        out = make(name)(S, Y, mask=mask, predict=pooled)
        assert all(o.isfinite().all() for o in (*out.z.values(), out.y, *out.aux.values())), name


def test_a_latent_that_is_not_finite_ends_in_no_other_error():
    for bad in (float('nan'), float('inf')):
        for name in METHODS:
            z = {m: o.clone() for m, o in Z.items()}
            z['text'][2] = bad
            assert len(make(name)(z, Y, predict=pooled).y) == 6


def test_predictions_that_do_not_fit():
    wrong = {'shape (3, 1)': lambda z, mask: torch.zeros(3, 1),
             'returned a tuple': lambda z, mask: (torch.zeros(6, 1),)}
    for name in ('advmixup', 'lemda'):
        for says, predict in wrong.items():
            with pytest.raises(UsageError) as e: make(name)(Z, Y, predict=predict)
            assert says in str(e.value)
    with pytest.raises(UsageError, match=r'returned \(6, 4\) for labels \(6, 1\)'):
        make('advmixup')(Z, Y, predict=lambda z, mask: z['audio'])
    with pytest.raises(UsageError, match='without a gradient'):
        make('advmixup')(Z, Y, predict=torch.no_grad()(pooled))


@pytest.mark.parametrize('what', ['dims', 'label_range', 'seed', 'rows'])
def test_options_that_every_mixer_refuses(what):
    nan, inf = float('nan'), float('inf')
    bad = {'dims': (['text', 'audio'], {}, {'text': 0, 'audio': 3}, {'text': 2.5, 'audio': 3}, {'a.b': 3, 'c': 3}),
           'label_range': ((3, -3), (nan, 3), 3, (1, 1), '03', (-inf, inf)),
           'seed': (-1, True, 2**64, 1.5, '1'), 'rows': (0, -1, inf, nan, True, '2')}
    for name in MIXERS:
        cls = type(build_mixer(name, DIMS))
        for o in bad[what]:
            with pytest.raises(UsageError, match=what): cls(**{'dims': DIMS, what: o})
