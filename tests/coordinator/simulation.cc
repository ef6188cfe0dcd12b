#include "tests/coordinator/simulation.h"

#include <algorithm>
#include <numeric>

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

Simulation::Simulation(ClusterConfig given)
    : config(given), state(std::move(given), Clock::time_point{}), now{} {}

std::string Simulation::tail() const {
  std::string text = "\n";
  const std::size_t from = trace.size() > 60 ? trace.size() - 60 : 0;
  for (std::size_t i = from; i < trace.size(); ++i) text += "  " + trace[i] + "\n";
  return text;
}

void Simulation::event(const Event& event) { perform(state.handle(event, now)); }

OperationId Simulation::start(std::vector<Deployment> deployments) {
  const OperationId id{++operations_};
  event(StartRequest{id, std::move(deployments)});
  return id;
}

OperationId Simulation::deploy(Deployment deployment) {
  const OperationId id{++operations_};
  trace.push_back(fmt::format("deploy '{}' as operation {}", deployment.name, id.value));
  event(DeployRequest{id, std::move(deployment)});
  return id;
}

OperationId Simulation::undeploy(const std::string& name) {
  const OperationId id{++operations_};
  trace.push_back(fmt::format("undeploy '{}' as operation {}", name, id.value));
  event(UndeployRequest{id, name});
  return id;
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
  const int key = router_keys_++;
  Router& router = routers[key];
  router.pid = ++pids_;
  router.id = RouterId{id.value_or(static_cast<std::uint32_t>(key))};
  reconnect_router(key);
  return key;
}

void Simulation::reconnect_router(int key) {
  Router& router = routers.at(key);
  router.connection = new_connection();
  router.inbox.clear();
  router.outbox.clear();
  proto::Hello hello = this->hello(proto::Role::kRouter, router.id.value, 1);
  hello.pid = router.pid;
  event(PeerHello{*router.connection, hello, "test"});
}

void Simulation::close_router(int key) {
  Router& router = routers.at(key);
  if (!router.connection) return;
  const ConnectionId connection = *router.connection;
  router.connection.reset();
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
  heartbeat.stats.epoch = router.active;
  heartbeat.stats.running_per_deployment = router.running;
  router.outbox.push_back(heartbeat);
}

void Simulation::end_process(WorkerId id, const std::string& how) {
  const Process process = std::move(processes.at(id));
  processes.erase(id);
  trace.push_back(fmt::format("worker {} ends: {}", id.value, how));
  if (process.connection) event(PeerClosed{*process.connection, "end of file"});
  event(ProcessExited{id, process.incarnation, how});
}

void Simulation::kill_process(WorkerId id) {
  const Process process = std::move(processes.at(id));
  processes.erase(id);
  event(ProcessExited{id, process.incarnation, "signal 9"});
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
  return refusals_[connection];
}

void Simulation::check_publish(const EpochView& view) {
  EXPECT_GT(view.placement.epoch, last_published_) << tail();
  last_published_ = view.placement.epoch;
  std::map<std::pair<WorkerId, std::int32_t>, std::int32_t> load;
  for (WorkerId id : view.placement.workers()) {
    for (ExpertId expert : view.placement.experts_of(id)) ++load[{id, expert.layer}];
  }
  for (const auto& [where, count] : load) EXPECT_LE(count, config.capacity_per_layer) << tail();
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
        EXPECT_FALSE(view.placement.owners[layer][static_cast<std::size_t>(expert)].empty())
            << tail();
      }
    }
  }
}

void Simulation::check_kept(WorkerId id,
                            std::uint64_t incarnation,
                            const std::set<ExpertId>& kept) {
  for (const auto& [key, router] : routers) {
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

void Simulation::perform(const std::vector<Action>& actions) {
  // The view is the same for all routers; check it once.
  for (const Action& action : actions) {
    const auto* send = std::get_if<Send>(&action);
    const auto* publish =
        send != nullptr ? std::get_if<proto::PublishEpoch>(&send->message) : nullptr;
    if (publish != nullptr && publish->view.placement.epoch > last_published_)
      check_publish(publish->view);
  }
  if (state.published() != nullptr && state.published()->placement.epoch > last_published_) {
    check_publish(*state.published());
  }
  for (const Action& action : actions) {
    if (const auto* log = std::get_if<Log>(&action)) {
      trace.push_back(log->text);
    } else if (const auto* start = std::get_if<StartWorker>(&action)) {
      EXPECT_FALSE(processes.contains(start->worker)) << "started twice" << tail();
      EXPECT_LT(start->worker.value, config.max_workers);
      processes[start->worker].incarnation = start->incarnation;
      processes[start->worker].crashing = crash.has_value();
      processes[start->worker].frozen = freeze_new;
    } else if (const auto* stop = std::get_if<StopWorker>(&action)) {
      if (!exited && !routers.empty() && !state.status(now).shutting_down) {
        check_kept(stop->worker, stop->incarnation, {});
      }
      const auto process = processes.find(stop->worker);
      if (process != processes.end() && process->second.incarnation == stop->incarnation) {
        process->second.asked_to_stop = true;
      }
    } else if (const auto* kill = std::get_if<KillWorker>(&action)) {
      ++kills;
      const auto process = processes.find(kill->worker);
      if (process != processes.end() && process->second.incarnation == kill->incarnation) {
        process->second.killed = true;
      }
    } else if (const auto* send = std::get_if<Send>(&action)) {
      if (const auto* refuse = std::get_if<proto::Refuse>(&send->message)) {
        refusals_[send->connection] = refuse->error.message;
      }
      for (auto& [id, process] : processes) {
        if (process.connection != send->connection) continue;
        if (const auto* drop = std::get_if<proto::DropExperts>(&send->message)) {
          check_kept(id, process.incarnation, as_set(drop->keep));
          confirmed_[{id, process.incarnation}] = as_set(drop->keep);
        }
        process.inbox.push_back(send->message);
      }
      for (auto& [key, router] : routers) {
        if (router.connection != send->connection) continue;
        if (const auto* publish = std::get_if<proto::PublishEpoch>(&send->message)) {
          router.usable.push_back(publish->view);
        }
        router.inbox.push_back(send->message);
      }
    } else if (const auto* close = std::get_if<CloseConnection>(&action)) {
      closing_.push_back(close->connection);
    } else if (const auto* complete = std::get_if<CompleteOperation>(&action)) {
      EXPECT_FALSE(results.contains(complete->operation)) << "completed twice" << tail();
      results[complete->operation] = complete->error;
    } else if (std::get_if<Exit>(&action) != nullptr) {
      EXPECT_FALSE(exited);
      exited = true;
    }
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
  if (!process.connection) {
    if (!process.resident.empty()) return false;  // it was cut off and goes on serving
    process.connection = new_connection();
    event(PeerHello{*process.connection, hello(proto::Role::kWorker, id.value, process.incarnation),
                    "test"});
    return true;
  }
  if (process.inbox.empty()) return false;
  const proto::ControlMessage message = std::move(process.inbox.front());
  process.inbox.pop_front();
  if (const auto* load = std::get_if<proto::LoadExperts>(&message)) {
    proto::ExpertsReady ready;
    ready.epoch = load->epoch;
    if (load_error) {
      ready.error = load_error;
    } else {
      process.resident.insert(load->experts.begin(), load->experts.end());
    }
    process.outbox.push_back(ready);
  } else if (const auto* drop = std::get_if<proto::DropExperts>(&message)) {
    process.resident = as_set(drop->keep);
  }
  return true;
}

bool Simulation::step_router(int key) {
  Router& router = routers.at(key);
  if (!router.connection || router.frozen || router.inbox.empty()) return false;
  if (!router.confirms && std::holds_alternative<proto::PublishEpoch>(router.inbox.front()))
    return false;
  const proto::ControlMessage message = std::move(router.inbox.front());
  router.inbox.pop_front();
  if (const auto* publish = std::get_if<proto::PublishEpoch>(&message)) {
    router.active = publish->view.placement.epoch;
    std::erase_if(router.usable,
                  [&](const EpochView& view) { return view.placement.epoch < router.active; });
    router.outbox.push_back(proto::EpochActive{router.active, {}});
  } else if (std::holds_alternative<proto::Shutdown>(message)) {
    router.told_to_end = true;
  }
  return true;
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
        if (router.connection == connection) {
          router.connection.reset();
          router.usable.clear();  // fenced by its lease: stale replies are its own affair
        }
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
      moved |= deliver(router.outbox, router.connection);
    }
  }
}

void Simulation::advance(milliseconds time) {
  const Clock::time_point end = now + time;
  run();
  while (now < end) {
    now += milliseconds(50);
    if (now.time_since_epoch() % milliseconds(200) == Clock::duration::zero()) {
      for (auto& [id, process] : processes) {
        if (!process.connection || process.frozen) continue;
        proto::WorkerHeartbeat heartbeat;
        heartbeat.stats.experts_resident = process.resident.size();
        heartbeat.stats.bytes_resident = process.resident.size() * 100;
        process.outbox.push_back(heartbeat);
      }
      for (auto& [key, router] : routers) heartbeat_router(key);
    }
    run();
    tick();
    run();
  }
}

void Simulation::finish(OperationId id, milliseconds limit) {
  const Clock::time_point end = now + limit;
  run();
  while (!done(id) && now < end) advance(milliseconds(50));
  EXPECT_TRUE(done(id)) << "operation " << id.value << " hangs" << tail();
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
