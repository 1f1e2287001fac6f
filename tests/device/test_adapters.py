"""An update of a model with adapters: the merged model's gradient, and nothing else moves."""

# --------------------------------------------------------------------------------------- the update


@functools.cache
def updates(tx, remat="none", mesh=None, config=MODEL.config, rate=1.0):
    model = adapted(dataclasses.replace(config, remat=remat))
    score = dataclasses.replace(SCORE, head=dataclasses.replace(SCORE.head, mesh=mesh))
    return make_update(
        model, tx, learning_rate=lambda step: jnp.float32(rate), loss=LossConfig(), score=score
    )


PLAIN = optax.identity()
ADAM = make_optimizer(OptimConfig(weight_decay=0.1))


def start(params, tx):
    return init_state(adapted(MODEL.config), params, tx=tx)


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_the_gradient_is_that_of_the_merged_model(remat):
    params, piece = trained_params(MODEL.config), make_batch()
    state, metrics = updates(PLAIN, remat)(start(params, PLAIN), piece)
    gradient = jax.tree.map(jnp.subtract, params["lora"], state.params)

    def loss(adapters):
        return plain_loss(merge({"base": params["base"], "lora": adapters}), piece)

    value, expected = jax.jit(jax.value_and_grad(loss))(params["lora"])
    assert metrics["loss/total"].value() == pytest.approx(float(value), rel=1e-5)
    assert_trees_close(gradient, expected)


def test_what_trains_and_what_does_not():
    params = adapted(MODEL.config).init(jax.random.key(0))
    model = adapted(MODEL.config)
    trained, frozen = model.split(params)
    assert (trained, frozen) == (params["lora"], params["base"])
    assert model.join(trained, frozen) == params
    assert MODEL.split(params) == (params, None)  # whatever its names are
    assert MODEL.join(params, None) is params


def test_an_update_touches_the_adapters_alone():
    params = adapted(MODEL.config).init(jax.random.key(0))
    before = jax.tree.map(np.array, params)
    state = start(params, ADAM)
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert moments == 2 * sum(x.size for x in jax.tree.leaves(params["lora"]))
    for seed in range(3):
        state, _ = updates(ADAM, rate=0.01)(state, make_batch(seed=seed))
    parts = (state.frozen, params["base"], before["base"])
    for a, b, c in zip(*map(jax.tree.leaves, parts), strict=True):
        assert a is b  # neither copied nor given away
        np.testing.assert_array_equal(a, c)
    jax.tree.map(np.testing.assert_array_equal, params["lora"], before["lora"])
    for path, x in flatten_dict(state.params).items():
        assert np.abs(x - flatten_dict(before["lora"])[path]).max() > 1e-3, path


def test_the_loss_falls():
    piece = make_batch()
    zero = jnp.zeros_like(piece.share)
    piece = piece._replace(signal=piece.signal.replace(advantage=zero, ce_weight=zero + 1))
    fresh = adapted(MODEL.config).init(jax.random.key(0))
    loud = jax.tree.map(lambda x: 8 * x, fresh["base"])
    state, losses = start(lora.join(fresh["lora"], loud), ADAM), []
    for _ in range(60):
        state, metrics = updates(ADAM, rate=0.02)(state, piece)
        losses.append(metrics["loss/total"].value())
    assert losses[-1] < 0.2 * losses[0]


def test_an_update_is_the_same_on_eight_devices():
    config = dataclasses.replace(
        MODEL.config, vocab_size=24, num_heads=4, num_kv_heads=4, intermediate_size=32
    )
    params, piece = trained_params(config), make_batch()
    alone, metrics = updates(PLAIN, config=config)(start(params, PLAIN), piece)
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    places = {name: param_shardings(part, AXES, RULES, mesh=mesh) for name, part in params.items()}
    assert "tensor" in places["lora"]["layers"]["mlp"]["up"]["lora_b"].spec
    assert "fsdp" in places["lora"]["layers"]["mlp"]["up"]["lora_a"].spec
    with jax.set_mesh(mesh):
        state = start(jax.device_put(params, places), PLAIN)
        spread, others = updates(PLAIN, mesh=mesh, config=config)(state, place(piece, mesh))
    assert spread.params["last"]["attn"]["o"]["lora_a"].sharding.spec[0] == "tensor"
    gradients = [
        jax.tree.map(lambda a, b: to_host(a) - to_host(b), params["lora"], state.params)
        for state in (spread, alone)
    ]
    assert_trees_close(*gradients)
    assert {k: m.value() for k, m in others.items()} == pytest.approx(
        {k: m.value() for k, m in metrics.items()}, rel=1e-5, abs=1e-6
    )
