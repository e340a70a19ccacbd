"""The settings of every command, as dataclasses.

The YAML files in `configs/` hold the values. Configs are `DictConfig`s that were checked against
these classes, and code takes sections of theirs by these names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from perception.discovery.common_fate import ProposalConfig
from perception.discovery.train import DiscoveryConfig
from perception.slots.background import BackgroundConfig
from perception.slots.model import SlotConfig
from perception.slots.segments import SegmentConfig
from vis_rpg.schema import Bounds, Count, Positive, Seed, Share

Runtime = Literal["auto", "eager", "compile", "graph"]
Precision = Literal["float32", "bfloat16"]


@dataclass
class TaskConfig:
    """What to do. Other keys go to the environment's constructor."""

    OPEN = True

    name: str
    """The task, or which one of `family`."""
    terminates: bool = False
    """Whether the agent learns when episodes truly end; false where they never do."""
    family: str | None = None
    """metaworld: `name` is one of its tasks."""
    id: str | None = None
    """task=gym: a Gymnasium id with a Box action space, or module:Id-v0, of an installed package or
    of a file in the working directory."""
    processes: bool = False
    """task=gym: environments in worker processes, one a core; pays where a step takes long."""
    blocks: int = 2
    """task=block_push: number of blocks, 1 or 2."""
    looks: int | str = 0
    """task=block_push: seed of other colours and sizes of the blocks; 0 for the usual ones; twins:
    of one colour; striped."""
    physics: Literal["mujoco", "warp"] = "mujoco"
    """task=block_push, cheetah_back: whose physics trains; warp: MuJoCo Warp's, of all environments
    together, on a GPU if there is one."""
    success: str = "library"
    """Adroit: the criterion of success that counts, library or paper; both are logged."""
    kwargs: dict = field(default_factory=dict)
    """More arguments of the environment's constructor."""


@dataclass
class ObsConfig:
    """What is observed."""

    kind: Literal["state", "pixels"]
    """The environment's state vector, or the last two 64 x 64 RGB frames."""
    hide: list[str | int]
    """obs=state: numbers of the state that are not seen: velocities, where the task says which they
    are, or indices."""
    noise: Annotated[float, Bounds(0)]
    """obs=state: std of Gaussian noise on the state, in its own units."""
    corrupt: list[str] = field(default_factory=list)
    """obs=pixels: what a real camera does to frames: noise:5, jpeg:90, light:0.05, shake:1,
    texture:0.15, shadow:0.4, strip:8, grey:1."""


@dataclass
class StateConfig:
    """perception=state: the state, with the objects that the task names."""

    name: Literal["state"]
    frequencies: Annotated[int, Bounds(0)] | None
    """Frequencies of the positional encoding of object coordinates, 2^0 and up; 0: none; null: the
    task's own."""
    state_scale: Positive | None
    """Factor on the raw state; null: the task's own."""
    near: Positive | None
    """Coordinates are encoded on a logarithmic scale, fine where they are smaller than this: for
    tasks whose coordinates are relative, so that what touches is told apart finely and what is far
    coarsely (not in Table 1). null: as they are."""


@dataclass
class SlotsConfig:
    """perception=slots: objects discovered without labels."""

    name: Literal["slots"]
    checkpoint: str
    """File of the slot model, in the working directory or among those that ship."""
    frequencies: Annotated[int, Bounds(0)] | None
    """Frequencies of the positional encoding of centroids; null: as many as the slot model allows,
    whose objects at rest are only so still."""


@dataclass
class CnnConfig:
    """perception=cnn: a convolutional encoder of two frames, trained with the agent; no objects."""

    name: Literal["cnn"]
    backbone: str
    """conv4, or timm:<name of a timm model>."""
    weights: str | None
    """Weights of a timm backbone: a safetensors file, hub (timm fetches them), null (random)."""
    bonus_slots: str | None
    """File of a slot model whose objects the bonus reads, to compare with perception=slots; null:
    it reads frames by a frozen, random CNN."""


@dataclass
class LossWeights:
    """L1, L2 and L3 of Eq. 4."""

    state: float
    """L1, of the predicted states."""
    reward: float
    """L2, of the predicted rewards."""
    q: float
    """L3, of the Q values."""


@dataclass
class LatentConfig:
    """The latent variable z."""

    kind: Literal["gaussian", "categorical", "mixed", "sphere", "none"]
    """Its distribution; mixed: half categories, half Gaussian; sphere: unit vectors; none: an agent
    without z."""
    dim: int
    """Width of z, or number of categories."""
    posterior_std: Positive
    """Std of p_phi; of a sphere about its width, of categories without effect."""
    every: Annotated[int, Bounds(0)]
    """Steps after which z is drawn anew by π(z|s, z before); 0: once an episode (Table 1)."""
    relabel: Share
    """Share of a batch in which segments get z drawn anew where their episode was paid from there
    on (not in Table 1); for the fixed prior, without effect for a learned one."""
    prior: Literal["fixed", "learned"]
    """pi(z|s_1): fixed (sparse tasks), or learned by policy gradient (dense tasks)."""
    entropy: float
    """Weight of -KL(learned prior || fixed one), of categories their entropy but for a constant."""
    entropy_decay: list[int]
    """Interactions between which that weight falls linearly to 0: [begin, end]."""


@dataclass
class PolicyConfig:
    """The action policy π(a|s,z)."""

    kind: Literal["gaussian", "gmm", "flow"]
    """Its density before the tanh: a normal, a mixture of them, or a normalising flow (Fig. 8E)."""


@dataclass
class PlannerConfig:
    """Planning in the world model before each action (MPPI; Table 1 has none)."""

    samples: Count
    """Sequences of actions in a round."""
    policy_samples: Annotated[int, Bounds(0)]
    """How many of them are the policy's."""
    elites: Count
    """Sequences that make the next round's mean and std."""
    rounds: Count
    """Rounds of drawing before an action."""
    temperature: Annotated[float, Bounds(0)]
    """Of the elites' weights exp(temperature value); 0: all alike, the cross-entropy method."""
    min_std: Positive
    """Of actions."""
    max_std: Positive
    """Of actions, and of the first round."""


@dataclass
class EncoderConfig:
    """What the encoder f adds to perception."""

    memory: Literal["none", "gru"]
    """gru: a GRU, as wide as the hidden layers, that reads the episode so far; where one
    observation does not show the state."""


@dataclass
class AgentConfig:
    """Reparameterized policy learning; the defaults are Table 1 unless said otherwise."""

    name: str
    """rpg; mbsac, the same agent without z; sac, without a model: horizon is 1, and what only the
    model, p_phi and z have is without effect; tdmpc and cem, mbsac that plans."""
    gamma: Share
    """Discount."""
    gamma_rewarded: Share | None
    """Discount while five or more of the last 100 episodes have a positive return; null: gamma
    always (Table 1). The bonus explores further by a longer time, success is repeated sooner by
    values over a shorter one."""
    horizon: Count
    """H, steps of a segment and of imagination."""
    batch_size: Count
    """Segments per update."""
    state_dim: Count
    """Width of the latent state s."""
    hidden_dim: Count
    """Width of every hidden layer and of the GRU."""
    lr: Positive
    """Learning rate of Adam, every part."""
    grad_clip: Positive
    """Greatest gradient norm of each part."""
    alpha: Positive
    """Entropy coefficient at the start; tuned towards the entropy -|A|."""
    beta: float
    """Weight of log p_phi(z|s,a)."""
    tau: Share
    """Rate at which the target model follows."""
    target_every: Count
    """Updates between steps of the target model."""
    policy_every: Count
    """Updates between steps of the policy, p_phi and alpha."""
    entropy_in_target: bool
    """Whether the target value counts -alpha log pi."""
    std_scale: Positive
    """Factor on the policy's std (not in Table 1)."""
    reward_scale: float
    """Factor on the task's reward (1 / temperature)."""
    reward_ramp: Annotated[int, Bounds(0)]
    """Interactions over which that factor rises linearly from 0, as in the authors' dense runs; 0:
    it is always whole (Table 1)."""
    loss_weights: LossWeights
    critic: Literal["q", "v"]
    """What critics estimate: Q(s, a, z), or V(s, z), so that Q = r + gamma V(s', z) (the authors'
    runs)."""
    q_reduce: Literal["sum", "mean"]
    """Over the errors of the two critics, where Eq. 4 has one Q."""
    encoder: EncoderConfig
    policy: PolicyConfig
    latent: LatentConfig
    planner: PlannerConfig | None
    """null: actions are the policy's."""
    replay_capacity: Count
    """Observations in replay."""
    replay_recent: Annotated[int, Bounds(0)]
    """Half of each batch is of the newest this many transitions; 0: all of it is of any (Table 1).
    """
    replay_leading: Annotated[float, Bounds(0.0, 0.5)]
    """Share of each batch from steps that led up to a positive reward, once there are some; 0: none
    apart from those that chance draws (Table 1)."""
    replay_device: Literal["auto", "device", "host"]
    """Where replay lies; auto: on the device if it fits into four fifths of the free memory."""
    envs: Count
    """Environments side by side; one update follows each step of all."""
    seed_steps: int
    """Interactions with uniformly random actions before the first update."""


@dataclass
class NoBonusConfig:
    """exploration=none: no bonus. Presets set sizes of one all the same."""

    OPEN = True

    name: Literal["none"]
    scale: float
    """Factor on the normalised bonus."""


@dataclass
class ObjectRNDConfig:
    """exploration=object_rnd: random network distillation, by default on encoded objects."""

    name: Literal["object_rnd", "disagreement", "icm"]
    """object_rnd; to compare with: the disagreement of an ensemble that predicts what the RND would
    read next, or the intrinsic curiosity module on it."""
    rnd_input: Literal[
        "slots",
        "moving_slots",
        "moving_scene",
        "displaced_slots",
        "frame_embedding",
        "frames",
        "oracle_positions",
    ]
    """What the bonus reads: objects as perception encodes them, each only while it moves, all while
    anything moves that mostly rests, or how far they are displaced since the episode began (which
    features of slots and states then hold too); frames by a frozen random CNN; frames by
    convolutional networks (the paper's bonus from pixels; replay then holds frames); or true
    positions (for comparison only)."""
    scale: float
    """Factor on the normalised bonus."""
    width: Count
    """Width of both networks; of frames that of the CNN counts instead."""
    batch_size: Count
    """Observations from the whole replay per update."""
    warmup_updates: int
    """Updates before the statistics start; the bonus is 0 until then."""
    window: Annotated[int, Bounds(0)]
    """Updates that the statistics remember, earlier ones fading away; 0: all, as in the paper."""


@dataclass
class LoggerConfig:
    """What a run writes."""

    log_every: Count
    """Interactions between lines of metrics.jsonl and TensorBoard."""
    checkpoint_every: Count
    """Interactions between checkpoints."""
    wandb: str | None
    """Name of a Weights & Biases project, or null."""
    episodes: Annotated[int, Bounds(0, 200)] = 24
    """Episodes of training that checkpoints keep for `vis-rpg explore` to play again, spread over
    the run, the first successes among them; 0: none."""


@dataclass
class SceneConfig:
    """What frames show."""

    shadows: bool = False
    """Whether MuJoCo, by EGL, draws shadows; a scene without a light that throws any gets one."""


@dataclass(kw_only=True)
class RenderConfig(SceneConfig):
    """How frames are drawn."""

    backend: Literal["auto", "egl", "warp"]
    """Renderer of MuJoCo tasks: EGL, or mujoco-warp's ray-caster for all environments at once."""


@dataclass
class TrainConfig:
    """vis-rpg train."""

    seed: Seed
    """Of everything random."""
    seeds: Count
    """Number of agents that learn side by side from seeds `seed`, `seed` + 1, ..., each in a folder
    out/seed-N where there is more than one."""
    steps: Count
    """Environment interactions, seed steps included."""
    out: str
    """Folder of the run."""
    device: str
    """auto | cpu | cuda | cuda:N."""
    runtime: Runtime
    """How updates run; compile takes a minute before the first ones, graph needs a GPU, auto
    chooses and says so."""
    precision: Precision
    """Of products in the losses; float32 is TF32 on a GPU."""
    collectors: Annotated[int, Bounds(0)]
    """Ray actors that step the environments, on the machines of a cluster; 0: this process or its
    workers do."""
    render: RenderConfig
    resume: bool
    """Whether to continue from the last checkpoint in `out`."""
    perception: StateConfig | SlotsConfig | CnnConfig
    obs: ObsConfig
    agent: AgentConfig
    exploration: ObjectRNDConfig | NoBonusConfig
    task: TaskConfig
    logger: LoggerConfig


@dataclass
class DreamerSection:
    """What SheepRL is told."""

    experiment: str
    """SheepRL's name of the experiment, such as p2e_dv2_exploration (DreamerV2 with Plan2Explore),
    dreamer_v2 or dreamer_v3."""
    words: list[str]
    """Further words of its command line."""


@dataclass
class DreamerConfig(TrainConfig):
    """vis-rpg dreamer.

    Of the settings of `vis-rpg train` it reads task, obs, steps, seed, out, device, agent.envs,
    agent.replay_capacity and logger.log_every.
    """

    dreamer: DreamerSection


@dataclass
class EvaluateConfig:
    """vis-rpg evaluate."""

    run: str
    """Folder of a run or of a published agent, zoo:NAME, or hf:USER/REPO."""
    episodes: Count
    """Episodes by mean actions, each with its own z."""
    videos: bool
    """Whether rollouts.mp4 is written."""
    seed: Seed
    """Of starts and of z."""
    device: str
    """auto | cpu | cuda | cuda:N."""
    out: str | None
    """Folder of evaluation.json and rollouts.mp4; null: the run's, or runs/zoo-NAME."""


@dataclass
class PublishConfig:
    """vis-rpg publish."""

    run: str
    """Folder of a run, or of several seeds: the one of median success is published. Or of a
    published agent, for to=hf:..."""
    to: str
    """A folder to make, or hf:USER/REPO on the Hugging Face Hub."""
    video: bool
    """Whether rollouts.mp4 is recorded."""
    commit: str | None
    """Of the training; null: what the run has recorded (runtime.json)."""
    processor: str | None
    """Of the training; null: what the run has recorded."""


@dataclass
class DiagnoseConfig:
    """vis-rpg diagnose."""

    run: str
    """Folder of a run; diagnosis.json and diagnosis.png are written into it."""
    episodes: Annotated[int, Bounds(2)]
    """Episodes with sampled actions, each with its own z."""
    seed: Seed
    """Of starts, z and actions."""
    frequencies: list[Annotated[int, Bounds(0, 16)]]
    """Also train an RND for each of these numbers of frequencies on the states that the run
    visited, and say what stands out to it: about a minute each."""


@dataclass
class ExploreConfig:
    """vis-rpg explore."""

    run: str | list[str]
    """Folder of a run, of several seeds, of a sweep, or of a published agent, zoo:NAME, or
    hf:USER/REPO; or several of these to compare."""
    seed: Seed
    """Of the rollouts: their start, and z."""
    out: str | None
    """The page; null: report.html in the folder of the (first) run, or in runs/zoo-NAME."""
    serve: bool
    """Whether to serve the page of one run on 127.0.0.1 instead of writing it: it rolls out any z,
    and follows a run that goes on."""


@dataclass
class PlotCurvesConfig:
    """vis-rpg plot-curves."""

    name: str
    """Title of the figure."""
    runs: list[str]
    """Folders of runs to write curves.csv from; none: draw the curves.csv that is there."""
    labels: list[str]
    """Name of the curve of each of these folders; none: agent, perception and bonus."""
    key: str
    """Number of metrics.jsonl."""
    x: Literal["interactions", "minutes"]
    """The horizontal axis; minutes of training are shared by seeds that ran side by side."""
    out: str
    """Folder of curves.csv and curves.png."""


@dataclass
class ReproduceConfig:
    """vis-rpg reproduce."""

    NOT_GROUPS = ("obs", "preset")
    """Settings with the names of groups, which Hydra would take for those."""

    fig: int | None
    """Figure of the paper: 4 (bandit), 5 (maze), 6 (dense rewards), 7 (sparse rewards), 11
    (CheetahBack) or 13 (one-block BlockPush from pixels)."""
    table: Literal["tasks"] | None
    """Or a table of this project: tasks, RPG on each of the paper's tasks."""
    obs: Literal["state", "pixels"] | None
    """What agents of a table observe; null: state. Each figure has its own."""
    preset: str
    """Preset of every run, as of vis-rpg train: cpu | paper | debug."""
    seeds: Count
    """Runs of each curve, from seeds 0, 1, ...; every curve gets its first before any its next."""
    steps: Annotated[int, Bounds(0, above=True)] | None
    """Interactions of each run at most, pretraining frames included; null: those of the figure."""
    budget: str | None
    """Time for this command, as 90s, 150m or 2h; it stops with checkpoints, and repeated goes on;
    0m measures and trains nothing; null: no limit."""
    out: str
    """Folder of all runs and of the CSV, picture and table; figures share their runs."""
    device: str
    """auto | cpu | cuda | cuda:N."""


@dataclass
class TuneConfig:
    """vis-rpg tune."""

    OTHERS = "train"
    """The list that takes the settings that are none of this class."""

    space: list[str]
    """What to search, a word for each setting or group: KEY=interval(LOW,HIGH), with whole numbers
    at both ends for a whole number, KEY=tag(log,interval(LOW,HIGH)), KEY=choice(A,B) or
    KEY=range(FIRST,END,STEP)."""
    metric: str
    """Number of metrics.jsonl; the higher the better."""
    trials: Count
    """Runs to begin, each with settings drawn at random from the space."""
    grace: Annotated[float, Bounds(0, 1, above=True)]
    """Share of the interactions that every trial makes before ASHA may stop it."""
    reduction: Annotated[int, Bounds(2)]
    """One trial of so many goes on at each rung, which are as many times further apart."""
    cpus: Positive
    """Processors of a trial; as many trials run side by side as the machines have room for."""
    gpus: Annotated[float, Bounds(0)]
    """GPUs of a trial; 0.25: four trials share one."""
    seed: Seed
    """Of what is drawn from the space, and of every trial."""
    resume: bool
    """Whether to continue the search in `out`."""
    out: str
    """Folder of the trials, each the folder of a run, on storage that all machines share."""
    train: list[str]
    """Settings of vis-rpg train, the same for every trial."""


@dataclass
class VisualiseStatesConfig:
    """vis-rpg visualise-states."""

    run: str
    """Folder of a run; the figure is states.png in it."""


@dataclass
class VisualiseTasksConfig:
    """vis-rpg visualise-tasks."""

    tasks: list[str]
    """Names of tasks; none: all."""
    out: str
    """Folder of the pictures."""


@dataclass
class OfATask:
    """What commands that take a task but train no agent leave unread."""

    task: TaskConfig
    agent: dict = field(default_factory=dict)
    """Not read; some tasks set values of it."""
    exploration: dict = field(default_factory=dict)
    """Not read; some tasks choose it."""


@dataclass
class VisualiseSlotsConfig(OfATask):
    """vis-rpg visualise-slots."""

    run: str | None = None
    """Folder of a run or of a published agent that sees by slots, zoo:NAME, or hf:USER/REPO: the
    agent acts."""
    model: str | None = None
    """Or a slot model: a random policy acts in `task`."""
    columns: Annotated[int, Bounds(2)] = 10
    """Steps of the episode that the sheet shows."""
    corrupt: list[str] = field(default_factory=list)
    """With `model`: what a real camera does to frames, as of obs.corrupt."""
    seed: Seed = 0
    """Of the episode."""
    video: bool = False
    """Whether slots.mp4 is written too."""
    out: str | None = None
    """Folder of the pictures; null: the run's, runs/zoo-NAME, or runs/slots."""


@dataclass(kw_only=True)
class DiscoverConfig(OfATask):
    """vis-rpg discover-objects."""

    frames: Annotated[int, Bounds(100)]
    """Frames collected with random actions; they count as interactions in every pixel curve."""
    trajectory_length: Annotated[int, Bounds(2)]
    """Frames of one trajectory without reset."""
    randomized_reset: bool
    """Whether trajectories start with movable things anywhere that they can be, not where episodes
    start, if the task has such starts."""
    seed: Seed
    """Of the frames and the weights."""
    seeds: Count
    """Number of models, from seeds `seed`, `seed` + 1, ..., each from frames of its own, all
    scored on the same held-out ones."""
    held_out: Annotated[int, Bounds(100)]
    """Fresh frames to score the models on; a model with a known failure there is rejected."""
    corrupt: list[str]
    """What a real camera does to all frames, as of obs.corrupt."""
    render: SceneConfig
    out: str
    """The file of the model; several get -seed-N, and their scores -seeds.json."""
    model: SlotConfig
    segments: SegmentConfig
    background: BackgroundConfig
    proposals: ProposalConfig
    training: DiscoveryConfig
    device: str
    """auto | cpu | cuda | cuda:N."""
    runtime: Literal["eager", "compile"]
    """compile takes a minute, and pays in long trainings."""
    precision: Precision
    """Of products in the losses."""
    of_task: dict
    """Settings of each task that ships."""


@dataclass(kw_only=True)
class AblateConfig(DiscoverConfig):
    """vis-rpg ablate-discovery."""

    kind: Literal["proposals", "slots", "all"]
    """Segment proposals by themselves (half a minute an ingredient), trained models (four), or
    both."""


@dataclass(kw_only=True)
class ConditionsConfig(DiscoverConfig):
    """vis-rpg test-conditions."""

    conditions: list[str]
    """As of obs.corrupt, joined by + where they come together, and clean; of block_push also twins
    and striped; none: each of them."""
    protocols: list[Literal["clean", "L"]]
    """Models that learned from clean frames, and those that learned under the condition."""


@dataclass
class BanditRPGConfig:
    """RPG on the bandit."""

    categories: int
    """Of z."""
    batch_size: Annotated[int, Bounds(2)]
    """Fresh actions, or episodes, per update; the baseline of each is the mean of the others."""
    hidden_dim: Count
    """Width of every hidden layer."""
    std_scale: float
    """Factor on the policy's std."""
    lr: Positive
    """Learning rate of Adam."""
    reward_weight: float
    """1 / temperature."""
    consistency: float
    """Weight of log p_phi(z|s,a) at the start."""
    entropy_a: float
    """Weight of -log pi(a|s,z) at the start."""
    entropy_z: float
    """Weight of -log pi(z|s) at the start."""
    decay: float
    """Factor on the three weights above at each update."""


@dataclass
class ReinforceConfig:
    """A Gaussian with REINFORCE on the bandit."""

    batch_size: Annotated[int, Bounds(2)]
    """Fresh actions per update; each action's baseline is the mean of the others."""
    std: Positive
    """Std of the normal before the tanh at the start, where its mean is 0."""
    lr: Positive
    """Learning rate of Adam."""


@dataclass
class SoftmaxConfig:
    """A softmax over bins with REINFORCE on the bandit."""

    batch_size: Annotated[int, Bounds(2)]
    """Fresh actions per update; each action's baseline is the mean of the others."""
    bins: Annotated[int, Bounds(2)]
    """Of equal width on [-1, 1], all as likely at the start."""
    lr: Positive
    """Learning rate of Adam."""


@dataclass
class BanditConfig:
    """vis-rpg bandit."""

    seeds: list[Seed]
    """Of the runs of each agent."""
    updates: Count
    """Gradient steps of each agent."""
    log_every: Count
    """Updates between rows of the curves."""
    out: str
    """Folder of the CSV files and the figure."""
    rpg: BanditRPGConfig
    reinforce: ReinforceConfig
    softmax: SoftmaxConfig


@dataclass
class PathwiseAgentConfig(BanditRPGConfig):
    """An agent that learns through known dynamics."""

    categories: Annotated[int, Bounds(0)]
    """Of z; 0: no z."""
    pathwise: bool
    """Whether actions learn by the pathwise gradient, else by the score function."""
    posterior: Literal["state_action", "places"]
    """What p_phi reads z from: states and actions, as in Eq. 2, or only the place of the thing that
    the reward is about."""


@dataclass
class PathwiseConfig:
    """vis-rpg pathwise."""

    tasks: list[str]
    """peaks, double_well, push_around."""
    seeds: list[Seed]
    """Of the runs of each agent on each task."""
    updates: Count
    """Gradient steps of each agent."""
    log_every: Count
    """Updates between rows of the curves."""
    out: str
    """Folder of the CSV files and the figures."""
    agents: dict[str, PathwiseAgentConfig]
    """By name."""


@dataclass
class BenchmarkConfig:
    """vis-rpg benchmark."""

    what: Literal["suite", "envs", "loop", "counts", "peers"]
    """Updates of every kind; environments alone; where the time of a training step goes; counts
    that no machine changes; or other libraries beside ours, for `minutes` each."""
    quick: bool
    """Whether to measure for shorter, and less exactly; the suite then takes a minute."""
    json: str | None
    """File to write everything to as well."""
    device: str
    """suite, loop: auto | cpu | cuda | cuda:N."""
    only_task: str | None
    """envs: this task only."""
    backend: Literal["auto", "egl", "warp"]
    """envs: the renderer, as render.backend."""
    minutes: Positive
    """peers: of wall-clock for each, its start counted."""
    out: str
    """peers: folder of their runs, a new one; `vis-rpg plot-curves x=minutes` reads them."""
    check: bool
    """counts: whether to fail where one is more than 5% above results/speed/counts.json."""


@dataclass
class DoctorConfig:
    """vis-rpg doctor."""


SCHEMAS: dict[str, type] = {
    "train": TrainConfig,
    "dreamer": DreamerConfig,
    "evaluate": EvaluateConfig,
    "publish": PublishConfig,
    "diagnose": DiagnoseConfig,
    "explore": ExploreConfig,
    "plot_curves": PlotCurvesConfig,
    "reproduce": ReproduceConfig,
    "tune": TuneConfig,
    "visualise_slots": VisualiseSlotsConfig,
    "visualise_states": VisualiseStatesConfig,
    "visualise_tasks": VisualiseTasksConfig,
    "discover": DiscoverConfig,
    "ablate": AblateConfig,
    "conditions": ConditionsConfig,
    "bandit": BanditConfig,
    "pathwise": PathwiseConfig,
    "benchmark": BenchmarkConfig,
    "doctor": DoctorConfig,
}
"""The class of each config that commands start from, by its file."""
