/* The program of a pod's first container, which holds the pod's namespaces and does nothing else. Being the first process
   of the pod it also has to take leave of processes that lost their parent. */
#include <signal.h>
#include <unistd.h>

static void leave(int signal) {
  (void)signal;
  _exit(0);
}

int main(void) {
  signal(SIGINT, leave);
  signal(SIGTERM, leave);
  /* The kernel then reaps the children by itself. */
  signal(SIGCHLD, SIG_IGN);
  for (;;) pause();
}
