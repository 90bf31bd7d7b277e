/*
 * The least a monitor can do on this KVM: runs a flat 32-bit image and answers every hypercall,
 * OUT of EAX to port 0xe1, with 0 in RAX through the synchronised registers. Bytes for port 0xe9 go
 * to stdout. Hypercall STOP ends it.
 *
 * Usage: cloop IMAGE FILE_OFFSET LOAD_GPA ENTRY_GPA STOP
 */
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM_SIZE (32UL << 20)
#define HYPERCALL_PORT 0xe1
#define DEBUG_PORT 0xe9

static int call(int fd, unsigned long request, unsigned long arg, const char *what)
{
	int result = ioctl(fd, request, arg);

	if (result < 0)
		err(1, "%s", what);
	return result;
}

/* Flat segments, protected mode, no paging: as a PVH kernel starts. */
static void start_at(int vcpu, unsigned long entry)
{
	struct kvm_regs regs = { .rip = entry, .rflags = 2 };
	struct kvm_sregs sregs;
	struct kvm_segment data = { .limit = ~0U, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1, .selector = 16 };
	struct kvm_segment code = data;

	call(vcpu, KVM_GET_SREGS, (unsigned long)&sregs, "KVM_GET_SREGS");
	code.type = 11;
	code.selector = 8;
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 = 0x11;
	call(vcpu, KVM_SET_SREGS, (unsigned long)&sregs, "KVM_SET_SREGS");
	call(vcpu, KVM_SET_REGS, (unsigned long)&regs, "KVM_SET_REGS");
}

static void loop(int vcpu, struct kvm_run *run, unsigned int stop)
{
	for (;;) {
		if (ioctl(vcpu, KVM_RUN, 0) < 0)
			err(1, "KVM_RUN");
		if (run->exit_reason != KVM_EXIT_IO)
			errx(1, "KVM left the guest for reason %u", run->exit_reason);
		if (run->io.port == HYPERCALL_PORT) {
			if ((unsigned int)run->s.regs.regs.rax == stop)
				return;
			run->s.regs.regs.rax = 0;
			run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
		} else if (run->io.port == DEBUG_PORT) {
			if (write(STDOUT_FILENO, (char *)run + run->io.data_offset, 1) != 1)
				err(1, "stdout");
		}
	}
}

int main(int argc, char **argv)
{
	struct kvm_userspace_memory_region slot = { .memory_size = RAM_SIZE };
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP };
	struct kvm_run *run;
	unsigned long load;
	int kvm, vm, vcpu, file, run_size;
	char *ram;

	if (argc != 6)
		errx(2, "usage: %s IMAGE FILE_OFFSET LOAD_GPA ENTRY_GPA STOP", argv[0]);
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		err(1, "/dev/kvm");
	vm = call(kvm, KVM_CREATE_VM, 0, "KVM_CREATE_VM");
	call(vm, KVM_ENABLE_CAP, (unsigned long)&split, "KVM_CAP_SPLIT_IRQCHIP");
	ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (ram == MAP_FAILED)
		err(1, "mmap");
	file = open(argv[1], O_RDONLY);
	load = strtoul(argv[3], NULL, 0);
	if (file < 0 || load >= RAM_SIZE || pread(file, ram + load, RAM_SIZE - load, strtol(argv[2], NULL, 0)) <= 0)
		err(1, "%s", argv[1]);
	slot.userspace_addr = (unsigned long)ram;
	call(vm, KVM_SET_USER_MEMORY_REGION, (unsigned long)&slot, "KVM_SET_USER_MEMORY_REGION");
	vcpu = call(vm, KVM_CREATE_VCPU, 0, "KVM_CREATE_VCPU");
	run_size = call(kvm, KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE");
	run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		err(1, "mmap of kvm_run");
	start_at(vcpu, strtoul(argv[4], NULL, 0));
	run->kvm_valid_regs = KVM_SYNC_X86_REGS;
	loop(vcpu, run, strtoul(argv[5], NULL, 0));
	return 0;
}
