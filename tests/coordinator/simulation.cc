#include "tests/coordinator/simulation.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace moiety::coordinator {

using std::chrono::milliseconds;

namespace {

std::set<ExpertId> as_set(const std::vector<ExpertId>& experts) {
  return {experts.begin(), experts.end()};
}

bool includes(const std::set<ExpertId>& all, const std::set<ExpertId>& some) {
  return std::includes(all.begin(), all.end(), some.begin(), some.end());
}

}  // namespace

planner::ModelShape test_model(std::int32_t num_layers, std::int32_t num_routed) {
  planner::ModelShape model;
  model.fingerprint = "fingerprint-a";
  model.layers.resize(static_cast<std::size_t>(num_layers), {num_routed, 1, 2, 100});
  return model;
}

ClusterConfig test_config() {
  ClusterConfig config;
  config.model = test_model();
  config.served_name = "tiny";
  config.coordinator_instance = "instance";
  config.token = "secret";
  config.max_workers = 4;
  config.capacity_per_layer = 4;
  return config;
}

Deployment random_subset(const std::string& name,
                         std::int32_t keep,
                         std::uint32_t seed,
                         const planner::ModelShape& model) {
  std::mt19937 random(seed);
  Deployment deployment;
  deployment.name = name;
  for (const auto& layer : model.layers) {
    std::vector<std::int32_t> experts(static_cast<std::size_t>(layer.num_routed));
    std::iota(experts.begin(), experts.end(), 0);
    std::shuffle(experts.begin(), experts.end(), random);
    experts.resize(static_cast<std::size_t>(keep));
    std::sort(experts.begin(), experts.end());
    deployment.kept.layers.push_back(experts);
  }
  return deployment;
}

Deployment full_deployment(const planner::ModelShape& model) {
  return {"", planner::keep_all(model), false};
}

Simulation::Simulation(ClusterConfig given, Peers* peers)
    : config(given), state(std::move(given), Clock::time_point{}), now{}, peers_(peers) {}

std::string Simulation::tail() const {
  std::string text = "\n";
  const std::size_t from = trace.size() > 60 ? trace.size() - 60 : 0;
  for (std::size_t i = from; i < trace.size(); ++i) text += "  " + trace[i] + "\n";
  return text;
}

void Simulation::event(const Event& event) {
  events_.push_back(event);
  if (handling_) return;  // the call below us goes on with it
  handling_ = true;
  while (!events_.empty()) {
    const Event next = std::move(events_.front());
    events_.pop_front();
    const std::vector<Action> actions = state.handle(next, now);
    if (!perform(actions)) crash_coordinator();
  }
  handling_ = false;
}

template <class Request>
OperationId Simulation::ask(Request request) {
  const OperationId id{fmt::format("op-{:04}", ++operations_)};
  request.operation = id;
  trace.push_back(fmt::format("a client asks for {}", id.value));
  asked_[id] = request;
  request.request = RequestId{++requests_};
  operation_of_[request.request] = id;
  event(request);
  return id;
}

OperationId Simulation::start(std::vector<Deployment> deployments) {
  return ask(StartRequest{{}, std::move(deployments)});
}
OperationId Simulation::deploy(Deployment deployment) {
  return ask(DeployRequest{{}, std::move(deployment)});
}
OperationId Simulation::undeploy(const std::string& name) { return ask(UndeployRequest{{}, name}); }
OperationId Simulation::drain(WorkerId worker) { return ask(DrainRequest{{}, worker}); }
OperationId Simulation::undrain(WorkerId worker) { return ask(UndrainRequest{{}, worker}); }
OperationId Simulation::rebalance() { return ask(RebalanceRequest{}); }

void Simulation::join(WorkerId id, std::uint64_t capacity_bytes) {
  EXPECT_TRUE(config.static_fleet);
  begin_process(id, ++static_incarnations_);
  processes[id].capacity_bytes = capacity_bytes;
}

void Simulation::crash_coordinator() {
  ++crashes;
  crash_after_.reset();
  trace.push_back("--- the coordinator is killed and started again ---");
  events_.clear();
  for (auto& [id, process] : processes) {
    process.connection.reset();
    process.outbox.clear();  // what it was sent before, it does
  }
  for (auto& [key, router] : routers) {
    if (router.connection) router.kept_until = now + config.reconnect_grace;
    router.connection.reset();
    router.inbox.clear();
    router.outbox.clear();
    std::erase_if(router.usable,
                  [&](const EpochView& view) { return view.placement.epoch > router.active; });
  }
  closing_.clear();
  ClusterConfig again = config;
  again.coordinator_instance = fmt::format("instance-{}", crashes);
  state = ClusterState(again, now, disk);
  if (!disk) return;
  for (const auto& [id, error] : results) {
    const auto known = state.operation(id);
    if (!known) continue;  // more than 256 ago, or refused
    const bool failed = known->state == OperationState::kFailed;
    EXPECT_TRUE(failed || known->state == OperationState::kSucceeded)
        << id.value << " was done and runs again" << tail();
    EXPECT_EQ(failed, error.has_value()) << id.value << tail();
  }
  for (const OperationId& id : accepted) {
    if (results.contains(id)) continue;
    EXPECT_TRUE(state.operation(id)) << id.value << " was accepted and is forgotten" << tail();
  }
  // As the runtime does with its fleet.
  if (!config.static_fleet) {
    for (const DurableWorker& each : disk->workers) {
      const auto process = processes.find(each.id);
      if (each.runs &&
          (process == processes.end() || process->second.incarnation != each.incarnation)) {
        event(ProcessExited{each.id, each.incarnation, "gone when the coordinator came back"});
      }
    }
  }
  const auto asked = asked_;
  for (const auto& [id, request] : asked) {
    std::visit(
        [this, &id = id](auto again) {
          if constexpr (std::is_base_of_v<ChangeRequest, decltype(again)>) {
            again.request = RequestId{++requests_};
            operation_of_[again.request] = id;
            event(again);
          }
        },
        request);
  }
}

proto::Hello Simulation::hello(proto::Role role,
                               std::uint32_t id,
                               std::uint64_t incarnation) const {
  proto::Hello hello;
  hello.role = role;
  hello.id = id;
  hello.incarnation = incarnation;
  hello.token = config.token;
  hello.fingerprint = config.model.fingerprint;
  hello.lane_address = fmt::format("lane-{}-{}", id, incarnation);
  return hello;
}

int Simulation::add_router(std::optional<std::uint32_t> id) {
  Router router;
  router.id = RouterId{id.value_or(static_cast<std::uint32_t>(router_keys_))};
  return add_router(std::move(router));
}

int Simulation::add_router_without_id() {
  Router router;
  router.has_id_of_its_own = false;
  return add_router(std::move(router));
}

int Simulation::add_router(Router router) {
  const int key = router_keys_++;
  routers[key] = std::move(router);
  start_router(key);
  return key;
}

void Simulation::start_router(int key) {
  Router& router = routers.at(key);
  router.dead = router.frozen = router.cut_off = false;
  router.welcomed = router.told_to_end = router.lost_lease = false;
  router.pid = ++pids_;
  router.incarnation = ++router_incarnations_;
  router.active = {};
  reconnect_router(key);
}

void Simulation::kill_router(int key, bool unseen) {
  Router& router = routers.at(key);
  trace.push_back(fmt::format("router {} is killed{}", router.id.value, unseen ? ", unseen" : ""));
  if (!unseen) close_router(key);
  router.dead = true;
  router.connection.reset();
  router.inbox.clear();
  router.outbox.clear();
  router.usable.clear();
}

void Simulation::reconnect_router(int key) {
  Router& router = routers.at(key);
  router.connection = new_connection();
  router.inbox.clear();
  router.outbox.clear();
  proto::Hello hello = this->hello(proto::Role::kRouter, router.id.value, router.incarnation);
  if (!router.has_id_of_its_own && !router.welcomed) hello.id.reset();
  hello.pid = router.pid;
  if (peers_ != nullptr)
    use_epoch(router, peers_->stats(key).epoch);  // it may not have said so yet
  hello.epoch = router.active;
  event(PeerHello{*router.connection, hello, "test"});
}

void Simulation::close_router(int key) {
  Router& router = routers.at(key);
  if (!router.connection) return;
  const ConnectionId connection = *router.connection;
  router.connection.reset();
  router.kept_until = now + config.lease_ttl;
  router.inbox.clear();
  router.outbox.clear();
  std::erase_if(router.usable,
                [&](const EpochView& view) { return view.placement.epoch > router.active; });
  event(PeerClosed{connection, "closed by the test"});
}

void Simulation::heartbeat_router(int key) {
  Router& router = routers.at(key);
  if (!router.connection || router.frozen) return;
  proto::RouterHeartbeat heartbeat;
  if (peers_ != nullptr) {
    heartbeat.stats = peers_->stats(key);
  } else {
    heartbeat.stats.epoch = router.active;
    heartbeat.stats.running_per_deployment = router.running;
  }
  router.outbox.push_back(heartbeat);
}

void Simulation::use_epoch(Router& router, Epoch epoch) {
  // A Hello may have told a later one before this was said.
  router.active = std::max(router.active, epoch);
  std::erase_if(router.usable,
                [&](const EpochView& view) { return view.placement.epoch < router.active; });
}

void Simulation::confirm(int key, Epoch epoch, std::vector<WorkerId> lost) {
  Router& router = routers.at(key);
  use_epoch(router, epoch);
  if (!router.connection) return;  // its next Hello says so
  router.outbox.push_back(proto::EpochActive{epoch, std::move(lost)});
}

void Simulation::begin_process(WorkerId id, std::uint64_t incarnation) {
  Process& process = processes[id];
  process = {};
  process.incarnation = incarnation;
  if (peers_ != nullptr) process.lane_address = peers_->begin(id, incarnation);
}

Simulation::Process Simulation::take_process(WorkerId id) {
  Process process = std::move(processes.at(id));
  processes.erase(id);
  if (peers_ != nullptr) peers_->end(id);
  return process;
}

void Simulation::end_process(WorkerId id, const std::string& how) {
  const Process process = take_process(id);
  trace.push_back(fmt::format("worker {} ends: {}", id.value, how));
  if (process.connection) event(PeerClosed{*process.connection, "end of file"});
  if (!config.static_fleet) event(ProcessExited{id, process.incarnation, how});
}

void Simulation::kill_process(WorkerId id) {
  const Process process = take_process(id);
  if (!config.static_fleet) event(ProcessExited{id, process.incarnation, "signal 9"});
  if (process.connection) event(PeerClosed{*process.connection, "end of file"});
}

void Simulation::break_connection(WorkerId id) {
  const ConnectionId connection = *processes.at(id).connection;
  processes.at(id).connection.reset();
  event(PeerClosed{connection, "reset"});
}

std::string Simulation::knock(proto::Hello hello) {
  const ConnectionId connection = new_connection();
  event(PeerHello{connection, std::move(hello), "test"});
  const auto refusal = refusals_.find(connection);
  return refusal == refusals_.end() ? "" : refusal->second.message;
}

std::optional<ErrorCode> Simulation::knock_code(proto::Hello hello) {
  const ConnectionId connection = new_connection();
  event(PeerHello{connection, std::move(hello), "test"});
  const auto refusal = refusals_.find(connection);
  if (refusal == refusals_.end()) return std::nullopt;
  return refusal->second.code;
}

void Simulation::check_publish(const EpochView& view) {
  EXPECT_GT(view.placement.epoch, last_published_) << tail();
  last_published_ = view.placement.epoch;
  for (const WorkerEndpoint& endpoint : view.workers) {
    const std::set<ExpertId> placed = as_set(view.placement.experts_of(endpoint.id));
    EXPECT_TRUE(includes(confirmed_[{endpoint.id, endpoint.incarnation}], placed))
        << "epoch " << view.placement.epoch.value << " names worker " << endpoint.id.value
        << ", which did not confirm its experts" << tail();
    EXPECT_FALSE(placed.empty()) << tail();
  }
  for (const Deployment& deployment : view.deployments) {
    for (std::size_t layer = 0; layer < deployment.kept.layers.size(); ++layer) {
      for (std::int32_t expert : deployment.kept.layers[layer]) {
        const auto& here = view.placement.router_experts;
        EXPECT_TRUE(!view.placement.owners[layer][static_cast<std::size_t>(expert)].empty() ||
                    std::binary_search(here.begin(), here.end(),
                                       ExpertId{static_cast<std::int32_t>(layer), expert}))
            << tail();
      }
    }
  }
}

void Simulation::check_new_router(const Router& router) {
  const ClusterStatus status = state.status(now);
  const auto known = std::find_if(status.routers.begin(), status.routers.end(),
                                  [&](const RouterStatus& each) { return each.id == router.id; });
  ASSERT_NE(known, status.routers.end()) << tail();
  EXPECT_EQ(known->pid, router.pid) << tail();
  EXPECT_EQ(known->epoch, router.active) << "of a former process" << tail();
  EXPECT_EQ(known->stats.epoch, Epoch{}) << "of a former process" << tail();
}

void Simulation::check_kept(WorkerId id,
                            std::uint64_t incarnation,
                            const std::set<ExpertId>& kept) {
  for (const auto& [key, router] : routers) {
    // One that did not come back in time is beyond anybody's knowledge.
    if (!router.connection && now >= router.kept_until) continue;
    for (const EpochView& view : router.usable) {
      const bool named =
          std::any_of(view.workers.begin(), view.workers.end(), [&](const WorkerEndpoint& each) {
            return each.id == id && each.incarnation == incarnation;
          });
      if (!named) continue;
      EXPECT_TRUE(includes(kept, as_set(view.placement.experts_of(id))))
          << "router " << key << " may still use epoch " << view.placement.epoch.value
          << " of worker " << id.value << tail();
    }
  }
}

void Simulation::check_load(WorkerId id, const Process& process, const proto::LoadExperts& load) {
  auto& told = told_[{id, process.incarnation}];
  told.insert(load.experts.begin(), load.experts.end());
  most_held = std::max(most_held, told.size());
  std::uint64_t capacity =
      process.capacity_bytes != 0 ? process.capacity_bytes : config.capacity_bytes;
  std::uint64_t per_layer = 0;
  std::uint64_t held = 0;
  for (const auto& layer : config.model.layers) {
    per_layer += layer.expert_bytes *
                 static_cast<std::uint64_t>(std::min(config.capacity_per_layer, layer.num_routed));
  }
  for (ExpertId expert : told)
    held += config.model.layers[static_cast<std::size_t>(expert.layer)].expert_bytes;
  if (per_layer != 0 && (capacity == 0 || per_layer < capacity)) capacity = per_layer;
  EXPECT_LE(static_cast<double>(held), static_cast<double>(capacity) * (1 + config.move_headroom))
      << "worker " << id.value << " is told to hold too much" << tail();
}

bool Simulation::perform(const std::vector<Action>& actions) {
  std::size_t executed = 0;
  for (std::size_t i = 0; i < actions.size(); ++i) {
    EXPECT_TRUE(i == 0 || !std::holds_alternative<Persist>(actions[i])) << "persisted too late";
  }
  for (const Action& action : actions) {
    if (crash_after_ && executed++ == *crash_after_) return false;
    perform(action);
  }
  if (!actions.empty()) {
    // Whatever was done is on disk, and nothing else.
    EXPECT_EQ(state.durable(), disk.value_or(DurableState{})) << tail();
  }
  if (crash_after_) return false;
  return true;
}

void Simulation::perform(const Action& action) {
  if (const auto* persist = std::get_if<Persist>(&action)) {
    if (disk) {
      EXPECT_GE(persist->state->epoch_counter, disk->epoch_counter);
      EXPECT_GE(persist->state->incarnation_counter, disk->incarnation_counter);
    }
    disk = *persist->state;
    if (disk->published && disk->published->placement.epoch > last_published_)
      check_publish(*disk->published);
  } else if (const auto* log = std::get_if<Log>(&action)) {
    trace.push_back(fmt::format("{:6} {}", now.time_since_epoch() / milliseconds(1), log->text));
  } else if (const auto* start = std::get_if<StartWorker>(&action)) {
    EXPECT_FALSE(config.static_fleet) << "a static fleet starts nobody" << tail();
    EXPECT_FALSE(processes.contains(start->worker)) << "started twice" << tail();
    EXPECT_LT(start->worker.value, config.max_workers);
    begin_process(start->worker, start->incarnation);
    processes[start->worker].crashing = crash.has_value();
    processes[start->worker].frozen = freeze_new;
    event(ProcessStarted{
        start->worker, start->incarnation, {static_cast<std::int64_t>(start->incarnation), 1}});
  } else if (const auto* stop = std::get_if<StopWorker>(&action)) {
    EXPECT_FALSE(config.static_fleet) << "a static fleet stops nobody" << tail();
    if (!exited && !routers.empty() && !state.status(now).shutting_down) {
      check_kept(stop->worker, stop->incarnation, {});
    }
    const auto process = processes.find(stop->worker);
    if (process != processes.end() && process->second.incarnation == stop->incarnation) {
      process->second.asked_to_stop = true;
    }
  } else if (const auto* kill = std::get_if<KillWorker>(&action)) {
    EXPECT_FALSE(config.static_fleet) << "a static fleet kills nobody" << tail();
    ++kills;
    const auto process = processes.find(kill->worker);
    if (process != processes.end() && process->second.incarnation == kill->incarnation) {
      process->second.killed = true;
    }
  } else if (const auto* send = std::get_if<Send>(&action)) {
    if (const auto* refuse = std::get_if<proto::Refuse>(&send->message)) {
      refusals_[send->connection] = refuse->error;
    }
    for (auto& [id, process] : processes) {
      if (process.connection != send->connection) continue;
      if (std::holds_alternative<proto::Refuse>(send->message)) process.refused = true;
      if (std::holds_alternative<proto::Shutdown>(send->message)) process.asked_to_stop = true;
      if (const auto* load = std::get_if<proto::LoadExperts>(&send->message)) {
        check_load(id, process, *load);
      }
      if (const auto* drop = std::get_if<proto::DropExperts>(&send->message)) {
        check_kept(id, process.incarnation, as_set(drop->keep));
        std::erase_if(confirmed_[{id, process.incarnation}], [&](ExpertId expert) {
          return !std::binary_search(drop->keep.begin(), drop->keep.end(), expert);
        });
        told_[{id, process.incarnation}] = as_set(drop->keep);
      }
      process.inbox.push_back(send->message);
    }
    for (auto& [key, router] : routers) {
      if (router.connection != send->connection) continue;
      if (const auto* welcome = std::get_if<proto::Welcome>(&send->message)) {
        const RouterId id{welcome->assigned_id};
        if (router.has_id_of_its_own || router.welcomed) {
          EXPECT_EQ(id, router.id) << "it has another id now" << tail();
        } else {
          EXPECT_FALSE(router_ids_.contains(id))
              << "router " << id.value << " was another" << tail();
          router.id = id;
        }
        if (!std::exchange(router.welcomed, true)) check_new_router(router);
        router_ids_.insert(id);
      }
      if (const auto* refuse = std::get_if<proto::Refuse>(&send->message)) {
        EXPECT_EQ(refuse->error.code, ErrorCode::kUnavailable)
            << "a router ends: " << refuse->error.message << tail();
      }
      if (const auto* publish = std::get_if<proto::PublishEpoch>(&send->message)) {
        EXPECT_GE(publish->view.placement.epoch, router.active)
            << "an epoch ran backwards" << tail();
        router.usable.push_back(publish->view);
      }
      router.inbox.push_back(send->message);
    }
  } else if (const auto* close = std::get_if<CloseConnection>(&action)) {
    closing_.push_back(close->connection);
    for (auto& [key, router] : routers) {
      // Fenced by its lease: stale replies are its own affair.
      if (router.connection != close->connection) continue;
      router.usable.clear();
      router.lost_lease = router.welcomed;
    }
  } else if (const auto* accept = std::get_if<AcceptOperation>(&action)) {
    accepted.insert(accept->operation);
  } else if (const auto* complete = std::get_if<CompleteOperation>(&action)) {
    EXPECT_FALSE(answers.contains(complete->request)) << "answered twice" << tail();
    answers[complete->request] = *complete;
    const auto asked = operation_of_.find(complete->request);
    if (asked != operation_of_.end()) {
      results[asked->second] = complete->error;
      asked_.erase(asked->second);
    }
  } else if (std::get_if<Exit>(&action) != nullptr) {
    EXPECT_FALSE(exited);
    exited = true;
  }
}

bool Simulation::step_process(WorkerId id) {
  const auto found = processes.find(id);
  if (found == processes.end()) return false;
  Process& process = found->second;
  if (process.killed) return end_process(id, "signal 9"), true;
  if (process.frozen) return false;
  if (process.crashing) return end_process(id, *crash), true;
  if (process.asked_to_stop) return end_process(id, "exit status 0"), true;
  if (process.refused) return end_process(id, "exit status 1"), true;
  if (!process.connection) {
    process.connection = new_connection();
    proto::Hello hello = this->hello(proto::Role::kWorker, id.value, process.incarnation);
    hello.resident.assign(process.resident.begin(), process.resident.end());
    hello.capacity_bytes = process.capacity_bytes;
    if (!process.lane_address.empty()) hello.lane_address = process.lane_address;
    event(PeerHello{*process.connection, hello, "test"});
    return true;
  }
  if (process.inbox.empty()) return false;
  if (loads_hang && std::holds_alternative<proto::LoadExperts>(process.inbox.front())) return false;
  const proto::ControlMessage message = std::move(process.inbox.front());
  process.inbox.pop_front();
  if (const auto* load = std::get_if<proto::LoadExperts>(&message)) {
    proto::ExpertsReady ready;
    ready.epoch = load->epoch;
    if (load_error) {
      ready.error = load_error;
    } else if (auto loaded = peers_ == nullptr ? Result<void>{} : peers_->load(id, load->experts);
               !loaded) {
      ready.error = loaded.error();
    } else {
      process.resident.insert(load->experts.begin(), load->experts.end());
    }
    process.outbox.push_back(ready);
  } else if (const auto* drop = std::get_if<proto::DropExperts>(&message)) {
    std::erase_if(process.resident, [&](ExpertId expert) {
      return !std::binary_search(drop->keep.begin(), drop->keep.end(), expert);
    });
    if (peers_ != nullptr) peers_->keep_only(id, drop->keep);
  }
  return true;
}

bool Simulation::step_router(int key) {
  Router& router = routers.at(key);
  if (!router.connection || router.frozen || router.cut_off || router.inbox.empty()) return false;
  if (!router.confirms && std::holds_alternative<proto::PublishEpoch>(router.inbox.front()))
    return false;
  const proto::ControlMessage message = std::move(router.inbox.front());
  router.inbox.pop_front();
  if (const auto* welcome = std::get_if<proto::Welcome>(&message)) {
    if (peers_ != nullptr) peers_->welcome(key, RouterId{welcome->assigned_id});
  } else if (const auto* publish = std::get_if<proto::PublishEpoch>(&message)) {
    if (peers_ != nullptr) {
      peers_->apply(key, publish->view);
    } else {
      confirm(key, publish->view.placement.epoch);
    }
  } else if (std::holds_alternative<proto::Shutdown>(message)) {
    router.told_to_end = true;
  }
  return true;
}

bool Simulation::deliver_from_router(int key) {
  Router& router = routers.at(key);
  return !router.cut_off && deliver(router.outbox, router.connection);
}

bool Simulation::deliver(std::deque<proto::ControlMessage>& outbox,
                         std::optional<ConnectionId> connection) {
  if (outbox.empty() || !connection) return false;
  const proto::ControlMessage message = std::move(outbox.front());
  outbox.pop_front();
  if (const auto* ready = std::get_if<proto::ExpertsReady>(&message);
      ready != nullptr && !ready->error) {
    for (const auto& [id, process] : processes) {
      if (process.connection != connection) continue;
      confirmed_[{id, process.incarnation}] = process.resident;
    }
  }
  event(PeerMessage{*connection, message});
  return true;
}

void Simulation::tick() { event(Tick{}); }

void Simulation::run() {
  for (bool moved = true; moved;) {
    moved = false;
    while (!closing_.empty()) {
      const ConnectionId connection = closing_.front();
      closing_.pop_front();
      for (auto& [id, process] : processes) {
        if (process.connection == connection) process.connection.reset();
      }
      for (auto& [key, router] : routers) {
        if (router.connection == connection) router.connection.reset();
      }
      event(PeerClosed{connection, "closed by us"});
      moved = true;
    }
    for (std::uint32_t id = 0; id < config.max_workers; ++id) {
      moved |= step_process(WorkerId{id});
      const auto process = processes.find(WorkerId{id});
      if (process != processes.end() && !process->second.frozen) {
        moved |= deliver(process->second.outbox, process->second.connection);
      }
    }
    for (auto& [key, router] : routers) {
      moved |= step_router(key);
      moved |= deliver_from_router(key);
    }
  }
}

void Simulation::pass_time() {
  now += milliseconds(50);
  for (auto& [key, router] : routers)
    router.lost_lease |= !router.dead && !router.connection && now >= router.kept_until;
  if (now.time_since_epoch() % milliseconds(200) != Clock::duration::zero()) return;
  for (auto& [id, process] : processes) {
    if (!process.connection || process.frozen) continue;
    if (peers_ != nullptr) process.dispatches = peers_->dispatches(id);
    proto::WorkerHeartbeat heartbeat;
    heartbeat.stats.experts_resident = process.resident.size();
    heartbeat.stats.dispatches = process.dispatches;
    heartbeat.stats.bytes_resident = process.resident.size() * 100;
    process.outbox.push_back(heartbeat);
  }
  for (auto& [key, router] : routers) heartbeat_router(key);
}

void Simulation::advance(milliseconds time) {
  const Clock::time_point end = now + time;
  run();
  while (now < end) {
    pass_time();
    run();
    tick();
    run();
  }
}

void Simulation::finish(OperationId id, milliseconds limit) {
  const Clock::time_point end = now + limit;
  run();
  while (!done(id) && now < end) advance(milliseconds(50));
  EXPECT_TRUE(done(id)) << id.value << " hangs" << tail();
}

std::string Simulation::error(OperationId id) const {
  const auto result = results.find(id);
  return result == results.end() || !result->second ? "" : result->second->message;
}

std::set<WorkerId> Simulation::running() const {
  std::set<WorkerId> all;
  for (const auto& [id, process] : processes) all.insert(id);
  return all;
}

std::size_t Simulation::experts_resident() const {
  std::size_t count = 0;
  for (const auto& [id, process] : processes) count += process.resident.size();
  return count;
}

}  // namespace moiety::coordinator
